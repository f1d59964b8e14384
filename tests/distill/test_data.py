"""Batches: padding, signals beside them, and an order that follows from seed and epoch alone."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler
from transformers import DistilBertConfig

from hf_kdnas.distill.data import DistillationCollator, LengthGroupedSampler, pad, spread_rows
from hf_kdnas.distill.signals import TeacherSignals
from hf_kdnas.errors import InvalidInput
from hf_kdnas.tasks.masking import Masking

LENGTHS = np.random.default_rng(0).integers(2, 60, 1003)


def test_pad():
    ids, mask = pad([[5, 6, 7], [8]], 1, 4)
    assert ids.tolist() == [[5, 6, 7, 1], [8, 1, 1, 1]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(("multiple", "length"), [(None, 3), (4, 4)])
def test_collator(multiple, length):
    rows = [
        {"input_ids": [5, 6, 7], "token_type_ids": [0, 1, 1], "labels": 1, "index": 4},
        {"input_ids": [8], "token_type_ids": [0], "labels": 0, "index": 2},
    ]
    batch = DistillationCollator(9, pad_to_multiple_of=multiple)(rows)
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, length)
    assert batch["input_ids"][1].tolist() == [8] + [9] * (length - 1)
    assert batch["token_type_ids"][0, :3].tolist() == [0, 1, 1]
    assert batch["labels"].dtype == torch.int64


def test_regression_labels_stay_floating():
    batch = DistillationCollator(0)([{"input_ids": [1], "labels": 0.5}])
    assert batch["labels"].dtype == torch.float32


def test_labels_of_every_kind():
    def batch(*rows):
        return DistillationCollator(0)([{"input_ids": [1] * length, **row} for length, row in rows])

    several = batch((1, {"labels": [1.0, 0.0]}), (2, {"labels": [0.0, 0.0]}))["labels"]
    assert torch.equal(several, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    tags = batch((3, {"labels": [-100, 2, 0]}), (1, {"labels": [-100]}))["labels"]
    assert tags.tolist() == [[-100, 2, 0], [-100, -100, -100]]
    spans = batch(*[(2, {"start_positions": 0, "end_positions": 1})] * 2)
    assert (spans["start_positions"].tolist(), spans["end_positions"].tolist()) == ([0, 0], [1, 1])


@pytest.mark.parametrize("column", ["label", "label_ids"])
def test_labels_by_other_names(column):
    """GLUE's data sets have a `label`; beside a masking it is one of another task."""
    row = {"input_ids": [6, 7, 8], column: 1}
    assert DistillationCollator(0)([row])["labels"].tolist() == [1]
    assert DistillationCollator(0)([row | {"labels": 0}])["labels"].tolist() == [0]
    masking = Masking(4, 120, (0, 1, 2, 3, 4), 0.3)
    assert DistillationCollator(0, masking=masking)([row])["labels"].shape == (1, 3)


def test_signals_come_beside_the_batch_and_must_belong_to_it(tiny_bert_config, make_model, tmp_path):
    ids = [[2, 7, 3], [2, 8, 9, 10, 3], [2, 3]]
    signals = TeacherSignals.build(make_model(tiny_bert_config), ids, ["logits", "hidden.3"], tmp_path / "s")
    collate = DistillationCollator(0, signals)
    batch = collate([{"input_ids": ids[1], "index": 1}, {"input_ids": ids[2], "index": 2}])
    assert batch["teacher"]["hidden.3"].shape == (2, 5, 32)
    assert torch.equal(batch["teacher"]["logits"], signals.collate([1, 2], 5)["logits"])
    assert "teacher" not in collate.without_signals()([{"input_ids": ids[1], "index": 1}])
    for index in (0, 3):
        with pytest.raises(InvalidInput, match="cover 3 other sequences"):
            collate([{"input_ids": ids[1], "index": index}])
    with pytest.raises(InvalidInput, match="cover 3 other sequences"):
        collate([{"input_ids": [2, 8, 9, 11, 3], "index": 1}])  # another text of the same length
    with pytest.raises(InvalidInput, match=r"index: got 'input_ids'; .*add_column"):
        collate([{"input_ids": ids[1]}])


@pytest.mark.parametrize("reads", [True, False])
def test_segments_that_the_teacher_read_belong_to_a_text(reads, tiny_bert_config, make_model, tmp_path):
    """DistilBERT reads none; a text that is all of segment 0 is one without segments."""
    ids, pairs, plain = [[2, 7, 3, 8, 3]], [[0, 0, 0, 1, 1]], [[0] * 5]
    distilbert = DistilBertConfig(vocab_size=120, dim=16, n_layers=2, n_heads=4, hidden_dim=32)
    teacher = make_model(tiny_bert_config if reads else distilbert)
    for number, (built, other) in enumerate([(None, pairs), (pairs, plain), (pairs, None), (plain, None)]):
        signals = TeacherSignals.build(teacher, ids, ["logits"], tmp_path / str(number), token_type_ids=built)
        collate = DistillationCollator(0, signals)
        for segments, same in ((built, True), (other, not reads or built is plain)):
            row = {"input_ids": ids[0], "index": 0}
            if segments is not None:
                row["token_type_ids"] = segments[0]
            if same:
                collate([row])
            else:
                with pytest.raises(InvalidInput, match="with their token_type_ids"):
                    collate([row])


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_rows_of_a_formatted_dataset(form):
    topics = [[0.0, 1.0], [1.0, 1.0]]
    rows = {"input_ids": [[2, 7, 3], [2, 3]], "tags": [[0, 1, -100], [0, 0]], "topics": topics}
    dataset = datasets.Dataset.from_dict(rows).with_format(form)
    for column, expected in (("tags", [[0, 1, -100], [0, 0, -100]]), ("topics", topics)):
        named = dataset.select_columns(["input_ids", column]).rename_column(column, "labels")
        batch = DistillationCollator(0)([named[0], named[1]])
        assert batch["labels"].tolist() == expected
        assert batch["input_ids"].tolist() == [[2, 7, 3], [2, 3, 0]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("form", [None, "torch"])
def test_padding_of_a_tokenizer_is_taken_off(side, form):
    def padded(values, value):
        filler = [value] * (8 - len(values))
        return [*values, *filler] if side == "right" else [*filler, *values]

    rows = [
        {"input_ids": [2, 7, 3], "token_type_ids": [0, 0, 1], "labels": [0, 1, -100]},
        {"input_ids": [2, 9, 9, 3], "token_type_ids": [0, 1, 1, 1], "labels": [0, 1, 1, 0]},
    ]
    given = [
        {
            "input_ids": padded(row["input_ids"], 0),
            "attention_mask": padded([1] * len(row["input_ids"]), 0),
            "token_type_ids": padded(row["token_type_ids"], 0),
            "labels": padded(row["labels"], -100),
        }
        for row in rows
    ]
    collate = DistillationCollator(0)
    found = collate(list(datasets.Dataset.from_list(given).with_format(form)))
    for name, values in collate(rows).items():
        assert found[name].tolist() == values.tolist()
    # Eight classes of a row are not eight tokens, and answers move with their text.
    topics = [1.0, 0.0] * 4
    answer = {"labels": topics, "start_positions": 7 if side == "left" else 2}
    one = collate([{**given[0], **answer}])
    assert (one["labels"].tolist(), one["start_positions"].tolist()) == ([topics], [2])


def test_at_most_some_rows_are_looked_at():
    assert spread_rows(range(1000)) == list(range(0, 1000, 16))
    for count in (1, 63, 64, 65, 100, 127, 128, 1000):
        assert min(count, 32) <= len(spread_rows(range(count))) <= 64


def test_every_index_once_and_only_the_last_batch_smaller():
    batches = LengthGroupedSampler(LENGTHS, 16, seed=1).batches()
    assert sorted(index for batch in batches for index in batch) == list(range(len(LENGTHS)))
    assert [len(batch) for batch in batches] == [16] * 62 + [11]


def test_a_batch_sampler_cuts_the_same_batches():
    sampler = LengthGroupedSampler(LENGTHS, 16, seed=1)
    assert list(BatchSampler(sampler, 16, drop_last=False)) == sampler.batches()
    assert len(sampler) == len(LENGTHS)


def test_the_order_follows_from_seed_and_epoch_alone():
    orders = {}
    for noise in (0, 1):
        torch.manual_seed(noise)
        np.random.seed(noise)
        for seed in (0, 1):
            sampler = LengthGroupedSampler(LENGTHS, 16, seed)
            for epoch in (1, 0):
                sampler.set_epoch(epoch)
                orders.setdefault((seed, epoch), []).append(tuple(sampler))
    assert all(first == second for first, second in orders.values())
    assert len({first for first, _ in orders.values()}) == 4


def test_batches_have_little_padding_and_mix_lengths_over_the_epoch():
    batches = LengthGroupedSampler(LENGTHS, 16, seed=1).batches()
    padded = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    assert padded < 1.1 * LENGTHS.sum()
    first, second = (
        np.concatenate([LENGTHS[batch] for batch in half]) for half in (batches[:31], batches[31:])
    )
    assert abs(first.mean() - second.mean()) < 10
