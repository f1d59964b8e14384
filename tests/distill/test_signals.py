"""Cached signals: the teacher's own, padding-free on disk, whole or not there."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
import transformers

from hf_kdnas.distill import signal_writer
from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.distill.data import pad
from hf_kdnas.distill.signal_keys import signals_key, teacher_hash
from hf_kdnas.distill.signals import TeacherSignals
from hf_kdnas.errors import InvalidInput
from hf_kdnas.run import read_json

IDS = [[2, *range(10, 10 + length), 3] for length in (3, 17, 1, 8, 30, 5)]
NAMES = ["logits", "hidden.0", "hidden.2", "value.3"]


@pytest.fixture(params=["tiny_bert_config", "tiny_roberta_config"])
def teacher(request, make_model):
    return make_model(request.getfixturevalue(request.param))


def left_in(folder):
    """What is in a folder but for locks."""
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock"))


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


def test_logits_over_the_vocabulary_are_refused(tiny_bert_config, tmp_path):
    """Their width would be taken for the number of labels."""
    bert = transformers.BertForMaskedLM(tiny_bert_config).eval()
    with pytest.raises(InvalidInput, match=r"not those of the vocabulary\. Run it live"):
        TeacherSignals.build(bert, IDS, NAMES, tmp_path / "signals")
    TeacherSignals.build(bert, IDS, NAMES[1:], tmp_path / "signals")


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
    assert left_in(tmp_path) == ["s"]


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
        signals_key(base, IDS, NAMES, "fp16", compute="fp16"),
    }
    assert len(keys) == 9
    assert signals_key(base, IDS, reversed(NAMES), "fp16") in keys
    tiny_bert_config.hidden_act = "relu"
    assert teacher_hash(make_model(tiny_bert_config)) != base


def _lose_a_file(folder):
    (folder / "hidden.2.npy").unlink()


def _damage_a_block(folder):
    with open(folder / "hidden.2.npy", "r+b") as file:
        file.seek(1000)
        file.write(bytes(64))


def _cut_a_file(folder):
    with open(folder / "hidden.2.npy", "r+b") as file:
        file.truncate(500)


def _shorten_an_array(folder):
    np.save(folder / "logits.npy", np.load(folder / "logits.npy")[:-1])


def _swap_two_lengths(folder):
    lengths = np.load(folder / "lengths.npy")
    lengths[[0, 1]] = lengths[[1, 0]]
    np.save(folder / "lengths.npy", lengths)


def _change_a_digest(folder):
    digests = np.load(folder / "digests.npy")
    digests[1] += 1
    np.save(folder / "digests.npy", digests)


def _spoil_meta(folder):
    (folder / "meta.json").write_text('{"key": ')


def _other_key(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"key": "another"}))


def _empty_an_array(folder):
    (folder / "lengths.npy").write_bytes(b"")


def _lose_a_checksum(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"checksums": {}}))


def _empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


# What only shows in the arrays or against the texts.
HIDDEN = (_damage_a_block, _swap_two_lengths, _change_a_digest, _other_key)
OPEN = (
    *(_lose_a_file, _cut_a_file, _shorten_an_array, _spoil_meta, _empty),
    *(_empty_an_array, _lose_a_checksum),
)


@pytest.mark.parametrize("spoil", [*HIDDEN, *OPEN])
def test_what_is_broken_is_built_again(bert, tmp_path, spoil):
    folder = tmp_path / "signals"
    first = TeacherSignals.build(bert, IDS, NAMES, folder)
    wanted = first.collate([1], 19)
    spoil(folder)
    if spoil in OPEN:
        with pytest.raises(InvalidInput, match="whole folder of signals"):
            TeacherSignals.open(folder)
    again = TeacherSignals.build(bert, IDS, NAMES, folder)
    found = again.collate([1], 19)
    assert all(torch.equal(found[name], wanted[name]) for name in NAMES)
    assert np.array_equal(again.digests, first.digests)


class _Count:
    """Counts the texts that a model runs on, and dies before one too many."""

    def __init__(self, model, most=1000):
        self.texts, self.most = 0, most
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, model, inputs, options):
        self.texts += len(options["input_ids"])
        if self.texts > self.most:
            os.kill(os.getpid(), 9)


def _build_and_die(teacher, folder, most):
    _Count(teacher, most)
    signal_writer.CHECKPOINT_SECONDS = 0
    TeacherSignals.build(teacher, IDS, NAMES, folder, batch_size_tokens=40)


def test_a_killed_build_goes_on(bert, tmp_path):
    whole = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "whole" / "s", batch_size_tokens=40)
    process = multiprocessing.get_context("spawn").Process(
        target=_build_and_die, args=(bert, tmp_path / "s", 3)
    )
    process.start()
    process.join()
    assert process.exitcode == -9
    assert left_in(tmp_path) == [".s.unfinished", "whole"]
    told = []
    ran = _Count(bert)
    signals = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "s", progress=lambda *done: told.append(done))
    assert 0 < ran.texts < len(IDS)
    assert told[0][0] > len(IDS) - ran.texts
    assert told[-1] == (len(IDS), len(IDS))
    found, wanted = (each.collate(range(len(IDS)), 32) for each in (signals, whole))
    for name in NAMES:
        torch.testing.assert_close(found[name], wanted[name], rtol=2e-3, atol=2e-3)
    assert left_in(tmp_path) == ["s", "whole"]
    assert "progress.json" not in os.listdir(tmp_path / "s")


@pytest.mark.parametrize("spoil", ["lost", "emptied", "cut", "progress"])
def test_what_a_killed_build_lost_is_not_taken_for_zeros(bert, tmp_path, spoil):
    process = multiprocessing.get_context("spawn").Process(
        target=_build_and_die, args=(bert, tmp_path / "s", 3)
    )
    process.start()
    process.join()
    unfinished = tmp_path / ".s.unfinished"
    if spoil == "progress":
        (unfinished / "progress.json").write_text("")
    elif spoil == "emptied":
        (unfinished / "logits.npy").write_bytes(b"")
    elif spoil == "cut":
        done, outputs = read_json(unfinished / "progress.json")["done"], bert.config.num_labels
        os.truncate(
            unfinished / "logits.npy", done * outputs * 4 + 100
        )  # its header takes more than 100 bytes
    else:
        (unfinished / "logits.npy").unlink()
    ran = _Count(bert)
    signals = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "s")
    whole = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "whole")
    assert ran.texts == 2 * len(IDS)
    found, wanted = (each.collate(range(len(IDS)), 32) for each in (signals, whole))
    torch.testing.assert_close(found["logits"], wanted["logits"], rtol=1e-5, atol=1e-6)


def test_what_another_build_left_is_cleared_away(bert, tmp_path, monkeypatch):
    def stop(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(signal_writer, "CHECKPOINT_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        TeacherSignals.build(bert, IDS, NAMES, tmp_path / "s", batch_size_tokens=40, progress=stop)
    assert left_in(tmp_path) == [".s.unfinished"]
    ran = _Count(bert)
    signals = TeacherSignals.build(bert, IDS[::-1], NAMES, tmp_path / "s")
    assert ran.texts == len(IDS)
    assert signals.lengths.tolist() == [len(ids) for ids in IDS[::-1]]
    assert left_in(tmp_path) == ["s"]


def _build_slowly(teacher, folder, begun):
    ran = _Count(teacher)
    teacher.register_forward_hook(lambda *_: begun.set() or time.sleep(0.5))
    TeacherSignals.build(teacher, IDS, NAMES, folder, batch_size_tokens=40)
    assert ran.texts == len(IDS)


def test_a_second_process_waits_for_the_first_one(bert, tmp_path):
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=_build_slowly, args=(bert, tmp_path / "s", begun))
    process.start()
    assert begun.wait(120)
    ran = _Count(bert)
    signals = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "s")
    assert ran.texts == 0
    assert len(signals) == len(IDS)
    process.join()
    assert process.exitcode == 0


def test_texts_longer_than_the_position_table_are_refused(teacher, tmp_path):
    with pytest.raises(InvalidInput, match=r"a text of 65 tokens'; this teacher has positions for 64"):
        TeacherSignals.build(teacher, [[2, 3], [7] * 65], ["logits"], tmp_path / "s")
    TeacherSignals.build(teacher, [[7] * 64], ["logits"], tmp_path / "s")


def test_a_teacher_in_half_precision(bert, tmp_path):
    """Its weights are another content, and its signals nearly the same."""
    full = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "full")
    half = TeacherSignals.build(bert.bfloat16(), IDS, NAMES, tmp_path / "half")
    assert half.key != full.key
    for name in NAMES:
        found, wanted = (each.collate([0, 4], 32)[name].float() for each in (half, full))
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


def test_no_room_is_said_before_the_teacher_runs(bert, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 990, 10))
    monkeypatch.setattr(type(bert), "forward", None)
    with pytest.raises(InvalidInput, match=r"0\.00 GB of the teacher's signals.*has 0\.00 GB free"):
        TeacherSignals.build(bert, IDS, NAMES, tmp_path / "deeper" / "signals")
    assert left_in(tmp_path / "deeper") == []


def _build_on_a_full_disk(teacher, folder, limit, told):
    signal_writer.CHECKPOINT_SECONDS = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        TeacherSignals.build(teacher, IDS, NAMES, folder, batch_size_tokens=40)
    except InvalidInput as error:
        told.put(str(error))


def test_a_disk_that_fills_while_signals_are_built(bert, tmp_path):
    whole = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "whole")
    limit = (tmp_path / "whole" / "hidden.2.npy").stat().st_size * 2 // 3
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=_build_on_a_full_disk, args=(bert, tmp_path / "s", limit, told))
    process.start()
    message = told.get(timeout=120)
    process.join()
    assert re.search(r"stopped at [1-5] of 6 texts \(File too large\). Make room and run the same", message)
    ran = _Count(bert)
    signals = TeacherSignals.build(bert, IDS, NAMES, tmp_path / "s")
    assert 0 < ran.texts < len(IDS)
    found, wanted = (each.collate(range(len(IDS)), 32) for each in (signals, whole))
    torch.testing.assert_close(found["hidden.2"], wanted["hidden.2"], rtol=2e-3, atol=2e-3)


def test_values_too_large_for_fp16_are_refused(bert, tmp_path):
    with torch.no_grad():
        bert.bert.encoder.layer[1].output.LayerNorm.bias.fill_(1e5)
    with pytest.raises(InvalidInput, match="Keep the signals in fp32"):
        TeacherSignals.build(bert, IDS, NAMES, tmp_path / "signals")
    assert left_in(tmp_path) == []
    TeacherSignals.build(bert, IDS, NAMES, tmp_path / "signals", precision="fp32")


def test_values_that_are_not_numbers_are_refused(bert, tmp_path):
    with torch.no_grad():
        bert.bert.encoder.layer[1].output.LayerNorm.bias[0] = float("nan")
    with pytest.raises(InvalidInput, match=r"reaches nan.*run the teacher in float32, or mend it"):
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
