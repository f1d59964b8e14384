"""A tiny student without a head, and tasks of GLUE in the layout of the Hub, with classes that words tell."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from hf_kdnas.metrics import GLUE
from hf_kdnas.recipe import EvaluationSection

BAD, SO_SO, GOOD = (
    ["dull", "awful", "weak", "slow"],
    ["long", "short", "sad", "funny"],
    ["great", "superb", "warm", "fine"],
)
OTHER = ["the", "film", "plot", "actor", "scene", "story", "is", "was"]
ROWS = {"train": 96, "validation": 30, "validation_matched": 30, "validation_mismatched": 20}


def _text(draw: random.Random, words: list[str]) -> str:
    text = draw.choices(OTHER, k=draw.randint(2, 6)) + draw.choices(words, k=2)
    draw.shuffle(text)
    return " ".join(text)


def _write_split(
    folder: Path, task: str, split: str, *, file: str | None = None, turned: bool = False
) -> None:
    """Class 0 is told by bad words, the last by good ones, one between them by others."""
    known, draw = GLUE[task], random.Random(f"{task} {split}")
    columns: dict[str, list[Any]] = {name: [] for name in (*known.text, "label")}
    for _ in range(ROWS[split]):
        label = draw.randrange(len(known.labels)) if known.labels else draw.choice([0.0, 2.5, 5.0])
        part = label / (len(known.labels) - 1) if known.labels else label / 5
        words = (BAD, SO_SO, GOOD)[round(2 * part)]
        for name in known.text:
            columns[name].append(_text(draw, words))
        columns["label"].append(len(known.labels) - 1 - label if turned else label)
    (folder / task).mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / task / (file or f"{split}.parquet"))


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """A sentence, a pair, two metrics, a score, and two splits to report on."""
    folder = tmp_path / "glue"
    for task in ("sst2", "rte", "mrpc", "stsb", "cola"):
        for split in ("train", "validation"):
            _write_split(folder, task, split)
    for split in ("train", "validation_matched", "validation_mismatched"):
        _write_split(folder, "mnli", split, file=f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def turn_validation(glue: Path) -> Callable[[str], None]:
    """Turn the labels of a task's validation split round, so that what is learned is wrong there."""
    return lambda task: _write_split(glue, task, "validation", turned=True)


@pytest.fixture
def student(tmp_path: Path, tiny_bert_config: Any, tiny_tokenizer: Any) -> Path:
    """A tiny BERT without a head."""
    import torch
    from transformers import BertModel

    torch.manual_seed(0)
    folder = tmp_path / "student"
    BertModel(tiny_bert_config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def settings(glue: Path) -> Callable[..., EvaluationSection]:
    """Settings with which a run is done in a second."""

    def make(**changes: Any) -> EvaluationSection:
        usual = {
            "data": str(glue),
            "tasks": ["sst2"],
            "seeds": [0, 1],
            "learning_rates": [3e-3],
            "epochs": [2.0],
            "batch_sizes": [16],
            "precision": "fp32",
        }
        return EvaluationSection(**{**usual, **changes})

    return make
