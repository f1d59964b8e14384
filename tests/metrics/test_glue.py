"""GLUE's tasks: what the benchmark's paper and the Hub's data set say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_kdnas.metrics import CLASSIFICATION_METRICS, GLUE, GLUE_METRICS, REGRESSION_METRICS


def test_its_nine_tasks_have_the_papers_metrics() -> None:
    assert GLUE_METRICS == {
        "cola": ("matthews",),
        "sst2": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "stsb": ("pearson", "spearman"),
        "qqp": ("accuracy", "f1"),
        "mnli": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
    }


def test_widths_of_their_heads() -> None:
    widths = {name: len(task.labels) for name, task in GLUE.items()}
    assert widths == {**dict.fromkeys(GLUE, 2), "mnli": 3, "stsb": 0}


@pytest.mark.parametrize("name", GLUE)
def test_metrics_are_for_the_kind_of_label(name: str) -> None:
    fitting = CLASSIFICATION_METRICS if GLUE[name].labels else REGRESSION_METRICS
    assert set(GLUE[name].metrics) <= set(fitting)


def test_class_1_of_f1_is_the_pair_that_means_the_same() -> None:
    assert (GLUE["mrpc"].labels[1], GLUE["qqp"].labels[1]) == ("equivalent", "duplicate")


def test_mnli_is_reported_on_both_of_its_splits() -> None:
    assert GLUE["mnli"].splits == ("validation_matched", "validation_mismatched")
    assert {task.splits for name, task in GLUE.items() if name != "mnli"} == {("validation",)}


@pytest.mark.parametrize("name", GLUE)
def test_the_docs_have_the_same(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    _, _, text, classes, scored, _ = (cell.strip() for cell in row.split("|"))
    task = GLUE[name]
    assert text == ", ".join(task.text)
    assert classes == (", ".join(task.labels) or "a score from 0 to 5")
    assert scored.partition(", on ")[0] == ", ".join(task.metrics)
