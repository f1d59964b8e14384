"""Every kind of task from end to end: a search ends in a stock student, in ONNX, a report and a card."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoConfig

from hf_kdnas import cli
from hf_kdnas.run import read_json

GOOD, BAD = ("good", "great", "fine", "superb"), ("bad", "poor", "dull", "awful")
OTHER = ("the", "film", "movie", "plot", "acting", "story", "was", "and", "with", "very")


def _search(project: Path, rows: list[dict[str, Any]], *settings: str) -> dict[str, Any]:
    """Search on these rows; the results."""
    file = project / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    short = ("--data.path", str(file), "--data.labels", "null", "--search.episodes", "1")
    short += ("--teacher.fine_tune.epochs", "12")
    assert cli.main(["search", "--config", str(project / "recipe.yaml"), *short, *settings]) == 0
    return read_json(project / "run" / "results.json")


def _texts(count: int) -> Iterator[list[str]]:
    draw = random.Random(0)
    for _ in range(count):
        words = draw.choices(OTHER, k=draw.randint(2, 9)) + draw.choices(GOOD + BAD, k=draw.randint(0, 2))
        draw.shuffle(words)
        yield words


def _check(project: Path, results: dict[str, Any], kind: str, task: str, head: str) -> ModelCard:
    """What is the same for all kinds; the card."""
    student = project / "run" / "student"
    assert AutoConfig.from_pretrained(student).architectures == [f"BertFor{head}"]
    for name in ("model.onnx", "model_int8.onnx"):
        assert (student / "onnx" / name).stat().st_size > 0
    assert results["student"]["export_difference"] < 1e-4
    assert results["student"]["quality"] > 0.5 * results["teacher"]["quality"] > 0
    assert results["student"]["int8"]["quality"] > 0
    assert kind in (project / "run" / "report.html").read_text(encoding="utf-8")
    card = ModelCard.load(student / "README.md")
    tasks = {card.data.pipeline_tag, *(each.task_type for each in card.data.eval_results)}
    assert tasks == {task}
    return card


def test_multi_label_classification(tiny_project: Path) -> None:
    rows = [
        {
            "text": " ".join(words),
            "label": [name for name, part in (("praise", GOOD), ("blame", BAD)) if {*words} & {*part}],
        }
        for words in _texts(240)
    ]
    results = _search(tiny_project, rows)
    assert results["task"]["kind"] == "multi_label_classification"
    assert results["student"]["metrics"].keys() == {"f1", "accuracy"}
    card = _check(
        tiny_project, results, "multi label classification", "text-classification", "SequenceClassification"
    )
    assert "top_k=None" in card.text
    config = AutoConfig.from_pretrained(tiny_project / "run" / "student")
    assert config.problem_type == "multi_label_classification"
    assert set(config.label2id) == {"praise", "blame"}
