"""Masked language modelling: what is hidden, and what is scored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from hf_kdnas.distill.data import DistillationCollator
from hf_kdnas.errors import InvalidInput
from hf_kdnas.recipe import DataSection
from hf_kdnas.tasks import TaskData, evaluate_model, load_task
from hf_kdnas.tasks.masking import Masking

IGNORED = -100


@pytest.fixture
def data(tmp_path: Path) -> DataSection:
    lines = ["the film was very good", "", "a dull story and a poor plot but warm acting", "great"] * 20
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    return DataSection(path=str(tmp_path / "lines.txt"), task="fill-mask", max_length=8, mlm_probability=0.5)


@pytest.fixture
def task(data: DataSection, tiny_tokenizer: Any) -> TaskData:
    return load_task(data, tiny_tokenizer)


def test_texts_are_cut_into_windows_and_nothing_is_lost(task: TaskData, tiny_tokenizer: Any) -> None:
    assert all(len(row["input_ids"]) <= 8 and "labels" not in row for row in task.train)
    found = {tiny_tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in task.train}
    assert found == {
        "the film was very good",
        "a dull story and a poor",
        "plot but warm acting",
        "great",
    }
    assert [row["index"] for row in task.train] == list(range(len(task.train)))


def test_rows_to_score_hide_the_same_tokens_every_time(
    data: DataSection, task: TaskData, tiny_tokenizer: Any
) -> None:
    assert load_task(data, tiny_tokenizer).selection == task.selection
    assert any(label != IGNORED for row in task.selection for label in row["labels"])


@pytest.mark.parametrize("training", [False, True])
def test_masking_is_berts(training: bool) -> None:
    masking = Masking(mask_token_id=4, vocab_size=1000, special_ids=(0, 2, 3, 4), probability=0.2)
    ids = torch.randint(5, 1000, (400, 100), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 60:] = 2, 0
    mask = (torch.arange(100) < 60).long().expand(400, 100)
    masked, labels = (
        masking.in_epoch(torch.tensor((1, 0)), ids, mask)
        if training
        else masking(ids, mask, torch.Generator().manual_seed(1))
    )
    hidden = labels != IGNORED
    assert not hidden[:, 0].any()
    assert not hidden[:, 60:].any()
    assert torch.equal(labels[hidden], ids[hidden])
    assert torch.equal(masked[~hidden], ids[~hidden])
    assert hidden[:, 1:60].float().mean().item() == pytest.approx(0.2, abs=0.01)
    kinds = masked[hidden]
    assert (kinds == 4).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (kinds == ids[hidden]).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_batches_hide_other_tokens_each_time_but_keep_labels_that_are_there(task: TaskData) -> None:
    collator = DistillationCollator(task.pad_token_id, masking=task.masking)
    torch.manual_seed(0)
    first, second = collator(task.train[:8]), collator(task.train[:8])
    assert not torch.equal(first["labels"], second["labels"])
    whole = torch.where(first["labels"] != IGNORED, first["labels"], first["input_ids"])
    assert torch.equal(whole, DistillationCollator(task.pad_token_id)(task.train[:8])["input_ids"])
    torch.manual_seed(0)
    assert torch.equal(collator(task.train[:8])["labels"], first["labels"])
    scored = collator(task.selection[:4])
    assert scored["labels"][0].tolist()[: len(task.selection[0]["labels"])] == task.selection[0]["labels"]


def test_what_an_epoch_hides_in_a_row_is_the_same_in_any_batch(task: TaskData) -> None:
    def hidden(seed: int, epoch: int, rows: list[Any]) -> list[list[int]]:
        collator = DistillationCollator(
            task.pad_token_id, masking=task.masking, epoch=torch.tensor((seed, epoch))
        )
        return [
            labels[: len(row["input_ids"])]
            for row, labels in zip(rows, collator(rows)["labels"].tolist(), strict=True)
        ]

    rows = [*task.train[:8]]
    first = hidden(5, 0, rows)
    assert hidden(5, 0, rows[::-1]) == first[::-1]
    assert [hidden(5, 0, [row])[0] for row in rows] == first
    assert first not in (hidden(5, 1, rows), hidden(6, 0, rows))


def test_accuracy_is_over_hidden_tokens(task: TaskData, tiny_bert_config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(tiny_bert_config).eval()
    right = []
    for row in task.selection:
        with torch.no_grad():
            found = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].argmax(-1).tolist()
        right += [guess == label for guess, label in zip(found, row["labels"], strict=True) if label >= 0]
    assert evaluate_model(model, task.selection, task) == {"accuracy": pytest.approx(np.mean(right))}


def test_a_tokenizer_without_a_mask_token_is_refused(data: DataSection, tiny_tokenizer: Any) -> None:
    tiny_tokenizer.mask_token = None
    with pytest.raises(InvalidInput, match="without a mask token"):
        load_task(data, tiny_tokenizer)


def test_a_split_of_which_nothing_is_hidden_is_refused(data: DataSection, tiny_tokenizer: Any) -> None:
    few = dataclasses.replace(data, mlm_probability=0.0001)
    with pytest.raises(
        InvalidInput, match=r"data\.selection_fraction: got '0 hidden tokens'; .*needs 1 at least"
    ):
        load_task(few, tiny_tokenizer)


def test_files_without_texts_are_refused(data: DataSection, tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": " "}) + "\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match="all its texts are empty"):
        load_task(dataclasses.replace(data, path=str(tmp_path / "rows.jsonl")), tiny_tokenizer)
