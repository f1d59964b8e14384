"""Cached signals: the teacher's own, padding-free on disk, whole or not there."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
import transformers

from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.distill.data import pad
from hf_kdnas.distill.signals import TeacherSignals, signals_key, teacher_hash
from hf_kdnas.errors import InvalidInput

IDS = [[2, *range(10, 10 + length), 3] for length in (3, 17, 1, 8, 30, 5)]
NAMES = ["logits", "hidden.0", "hidden.2", "value.3"]


@pytest.fixture(params=["tiny_bert_config", "tiny_roberta_config"])
def teacher(request, make_model):
    return make_model(request.getfixturevalue(request.param))


@pytest.fixture
def bert(tiny_bert_config, make_model):
    return make_model(tiny_bert_config)


def live(teacher, indices, length):
    ids, mask = pad([IDS[index] for index in indices], teacher.config.pad_token_id, length)
    with torch.no_grad():
        return mask.bool(), forward_signals(
            teacher, Capture(teacher, NAMES), {"input_ids": ids, "attention_mask": mask}
        )


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-3), ("fp32", 1e-6)])
def test_the_same_as_a_live_teacher(teacher, tmp_path, precision, tolerance):
    signals = TeacherSignals.build(
        teacher, IDS, NAMES, tmp_path / "signals", precision=precision, batch_size_tokens=40
    )
    indices, length = [5, 1, 2], 24
    mask, wanted = live(teacher, indices, length)
    found = signals.collate(indices, length)
    assert set(found) == set(NAMES)
    torch.testing.assert_close(found["logits"], wanted["logits"], rtol=1e-5, atol=1e-6)
    for name in set(NAMES) - {"logits"}:
        assert found[name].dtype == {"fp16": torch.float16, "fp32": torch.float32}[precision]
        assert found[name].shape == wanted[name].shape
        torch.testing.assert_close(
            found[name][mask].float(), wanted[name][mask], rtol=tolerance, atol=tolerance
        )


def test_signals_that_no_objective_needs_are_not_read(bert, tmp_path):
    signals = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "signals")
    fewer = signals.only({"logits", "query.1"})
    assert fewer.names == list(fewer.collate([0], 5)) == ["logits"]
    assert set(signals.collate([0], 5)) == set(NAMES)
    assert pickle.loads(pickle.dumps(fewer)).names == ["logits"]


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering"])
def test_outputs_of_each_token_are_kept_without_padding(tiny_bert_config, tmp_path, head):
    torch.manual_seed(0)
    bert = getattr(transformers, f"AutoModelFor{head}").from_config(tiny_bert_config).eval()
    signals = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "signals", batch_size_tokens=40)
    indices, length = [5, 1, 2], 24
    mask, wanted = live(bert, indices, length)
    found = signals.collate(indices, length)["logits"]
    assert found.shape == (3, 24, 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[mask], wanted["logits"][mask], rtol=1e-5, atol=1e-6)
    lengths = [len(ids) for ids in IDS]
    told = TeacherSignals.size_bytes(bert.config, lengths, NAMES, token_logits=True)
    assert told == sum(lengths) * (2 * 4 + 3 * 32 * 2)
    assert told == sum((signals.folder / f"{name}.npy").stat().st_size - 128 for name in NAMES)
    assert len(TeacherSignals.open(signals.folder)) == len(IDS)


def test_segments_reach_the_teacher(bert, tmp_path):
    segments = [[0, *[1] * (len(ids) - 1)] for ids in IDS]
    plain = TeacherSignals.build(bert, IDS, ["logits"], tmp_path / "a")
    pairs = TeacherSignals.build(bert, IDS, ["logits"], tmp_path / "b", token_type_ids=segments)
    assert plain.key != pairs.key
    difference = plain.collate([0, 1], 19)["logits"] - pairs.collate([0, 1], 19)["logits"]
    assert difference.abs().min() > 1e-5


def test_size_is_told_beforehand(bert, tmp_path):
    lengths = [len(ids) for ids in IDS]
    told = TeacherSignals.size_bytes(bert.config, lengths, NAMES)
    folder = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "signals").folder
    headers = 128 * len(NAMES)
    assert told == sum((folder / f"{name}.npy").stat().st_size for name in NAMES) - headers
    assert told == len(IDS) * 2 * 4 + sum(lengths) * 3 * 32 * 2


def test_what_is_there_is_opened_without_the_teacher_running(bert, tmp_path, monkeypatch):
    calls = []
    built = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "s", progress=lambda *done: calls.append(done))
    assert calls[-1] == (len(IDS), len(IDS))
    before = len(calls)
    monkeypatch.setattr(type(bert), "forward", None)
    again = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "s", progress=lambda *done: calls.append(done))
    assert again.key == built.key
    assert len(calls) == before
    assert os.listdir(tmp_path) == ["s"]


def test_the_key_follows_all_that_the_signals_follow_from(bert, tiny_bert_config, make_model):
    base = teacher_hash(bert)
    assert base == teacher_hash(make_model(tiny_bert_config))
    keys = {
        signals_key(base, IDS, NAMES, "fp16"),
        signals_key(teacher_hash(make_model(tiny_bert_config, seed=1)), IDS, NAMES, "fp16"),
        signals_key(base, IDS[::-1], NAMES, "fp16"),
        signals_key(base, [[*IDS[0], *IDS[1]], [], *IDS[2:]], NAMES, "fp16"),
        signals_key(base, IDS, NAMES[1:], "fp16"),
        signals_key(base, IDS, NAMES, "fp32"),
        signals_key(base, IDS, NAMES, "fp16", token_type_ids=IDS),
        signals_key(base, IDS, NAMES, "fp16", compute="bf16"),
    }
    assert len(keys) == 8
    assert signals_key(base, IDS, reversed(NAMES), "fp16") in keys
    tiny_bert_config.hidden_act = "relu"
    assert teacher_hash(make_model(tiny_bert_config)) != base


def _lose_a_file(folder):
    (folder / "hidden.2.npy").unlink()


def _cut_a_file(folder):
    with open(folder / "hidden.2.npy", "r+b") as file:
        file.truncate(500)


def _shorten_an_array(folder):
    np.save(folder / "logits.npy", np.load(folder / "logits.npy")[:-1])


def _spoil_meta(folder):
    (folder / "meta.json").write_text('{"key": ')


def _other_key(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"key": "another"}))


def _empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "spoil", [_lose_a_file, _cut_a_file, _shorten_an_array, _spoil_meta, _other_key, _empty]
)
def test_what_is_broken_is_built_again(bert, tmp_path, spoil):
    folder = tmp_path / "signals"
    wanted = TeacherSignals.build(bert, IDS, NAMES, folder).collate([1], 19)
    spoil(folder)
    if spoil is not _other_key:
        with pytest.raises(InvalidInput, match="whole folder of signals"):
            TeacherSignals.open(folder)
    found = TeacherSignals.build(bert, IDS, NAMES, folder).collate([1], 19)
    assert all(torch.equal(found[name], wanted[name]) for name in NAMES)


def test_a_build_that_fails_leaves_nothing_behind(bert, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TeacherSignals.build(bert, IDS, NAMES, tmp_path / "signals", progress=stop)
    assert os.listdir(tmp_path) == []


def _build_and_die(teacher, folder):
    TeacherSignals.build(teacher, IDS, NAMES, folder, progress=lambda *_: os.kill(os.getpid(), 9))


def test_what_a_killed_build_left_is_cleared_away(bert, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_build_and_die, args=(bert, tmp_path / "s"))
    process.start()
    process.join()
    assert process.exitcode == -9
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".s.")
    TeacherSignals.build(bert, IDS, NAMES, tmp_path / "s")
    assert os.listdir(tmp_path) == ["s"]


def test_no_room_is_said_before_the_teacher_runs(bert, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 990, 10))
    monkeypatch.setattr(type(bert), "forward", None)
    with pytest.raises(InvalidInput, match=r"0\.00 GB of the teacher's signals.*has 0\.00 GB free"):
        TeacherSignals.build(bert, IDS, NAMES, tmp_path / "deeper" / "signals")
    assert os.listdir(tmp_path) == []


def test_values_too_large_for_fp16_are_refused(bert, tmp_path):
    with torch.no_grad():
        bert.bert.encoder.layer[1].output.LayerNorm.bias.fill_(1e5)
    with pytest.raises(InvalidInput, match="Keep the signals in fp32"):
        TeacherSignals.build(bert, IDS, NAMES, tmp_path / "signals")
    TeacherSignals.build(bert, IDS, NAMES, tmp_path / "signals", precision="fp32")


def test_values_that_are_not_numbers_are_refused(bert, tmp_path):
    with torch.no_grad():
        bert.bert.encoder.layer[1].output.LayerNorm.bias[0] = float("nan")
    with pytest.raises(InvalidInput, match=r"reaches nan.*mend the teacher"):
        TeacherSignals.build(bert, IDS, NAMES, tmp_path / "signals", precision="fp32")


def test_other_precisions_are_refused(bert, tmp_path):
    with pytest.raises(InvalidInput, match="precisions are fp16, fp32"):
        TeacherSignals.build(bert, IDS, NAMES, tmp_path / "signals", precision="int8")


def test_the_teachers_mode_is_restored(bert, tmp_path):
    bert.train()
    signals = TeacherSignals.build(bert, IDS, ["logits"], tmp_path / "signals")
    assert bert.training
    torch.testing.assert_close(signals.collate([4], 32)["logits"], live(bert.eval(), [4], 32)[1]["logits"])


def _first_logits(signals, queue):
    queue.put(signals.collate([0], 5)["logits"].tolist())


def test_they_travel_to_workers_as_a_path(bert, tmp_path):
    signals = TeacherSignals.build(bert, IDS, ["logits"], tmp_path / "signals")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_first_logits, args=(signals, queue))
    process.start()
    assert queue.get(timeout=120) == signals.collate([0], 5)["logits"].tolist()
    process.join()
