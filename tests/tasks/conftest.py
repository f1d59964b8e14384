"""Texts with a label, in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_kdnas.recipe import DataSection
from hf_kdnas.tasks import TaskData, load_task


@pytest.fixture
def texts() -> list[str]:
    return ["a good film", "the plot was dull and slow", "fine", "a sad story with a warm ending but so long"]


@pytest.fixture
def write(texts: list[str]) -> Callable[[Path, list[Any]], str]:
    """Write 60 rows with these labels, in turn, and give the file's name."""

    def file(path: Path, labels: list[Any]) -> str:
        rows = [
            {"text": texts[index % 4], "other": texts[(index + 1) % 4], "label": labels[index % len(labels)]}
            for index in range(60)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return file


@pytest.fixture
def task(tmp_path: Path, tiny_tokenizer: Any, write: Callable[[Path, list[Any]], str]) -> TaskData:
    return load_task(DataSection(path=write(tmp_path / "rows.jsonl", ["dull", "good"])), tiny_tokenizer)
