"""The table, and the published rows in it."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

import pytest

from hf_kdnas.evaluation.published import PUBLISHED
from hf_kdnas.evaluation.table import TITLES, model_name, render_table
from hf_kdnas.metrics import GLUE


def results(**tasks: list[list[float | None]]) -> dict[str, Any]:
    """Results with the values of each metric of each split, in GLUE's order."""
    found = {}
    for task, values in tasks.items():
        given = iter(values)
        found[task] = {
            "scores": {
                split: {metric: next(given) for metric in GLUE[task].metrics} for split in GLUE[task].splits
            }
        }
    seeds = len(next(iter(tasks.values()))[0])
    return {
        "model": "runs/mine/student",
        "parameters": 7_140_000,
        "seeds": list(range(seeds)),
        "tasks": found,
    }


def cells(table: str) -> list[dict[str, str]]:
    lines = [line.strip("| ").split("|") for line in table.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(header, [*row, *[""] * len(header)], strict=False)) for row in rows]


def test_columns_are_those_of_the_papers() -> None:
    (row,) = cells(
        render_table(
            results(
                rte=[[0.5, 0.7]],
                stsb=[[0.8, 0.8], [0.7, 0.7]],
                cola=[[0.4, 0.5]],
                mrpc=[[0.8, 0.9], [0.85, 0.95]],
                mnli=[[0.7, 0.71], [0.72, 0.73]],
            )
        )
    )
    assert row == {
        "model": "mine",
        "parameters": "7.14 M",
        "MNLI-m": "70.5 ± 0.7",
        "MNLI-mm": "72.5 ± 0.7",
        "CoLA": "45.0 ± 7.1",
        "STS-B Pearson": "80.0 ± 0.0",
        "STS-B Spearman": "70.0 ± 0.0",
        "MRPC acc": "85.0 ± 7.1",
        "MRPC F1": "90.0 ± 7.1",
        "RTE": "60.0 ± 14.1",
        # Of the first figure of each task; the spread is that of the seeds' averages.
        "average": f"{mean([64.0, 72.2]):.1f} ± {stdev([64.0, 72.2]):.1f}",
        "without CoLA": f"{mean([70.0, 77.75]):.1f} ± {stdev([70.0, 77.75]):.1f}",
    }


def test_one_seed_has_no_spread_and_one_average_is_enough_without_cola() -> None:
    table = render_table(results(sst2=[[0.912]], rte=[[0.6]]))
    (row,) = cells(table)
    assert (row["SST-2"], row["average"]) == ("91.2", "75.6")
    assert "without CoLA" not in row
    assert "one seed, 0." in table


def test_a_run_that_diverged_is_said_to_have() -> None:
    (row,) = cells(render_table(results(sst2=[[0.9, None]], rte=[[0.6, 0.6]])))
    assert (row["SST-2"], row["RTE"], row["average"]) == ("diverged", "60.0 ± 0.0", "diverged")


def test_published_rows_are_averaged_over_the_same_tasks() -> None:
    table = render_table(results(sst2=[[0.9]], stsb=[[0.8], [0.8]], cola=[[0.5]]), published=True)
    mine, bert, *others = cells(table)
    assert (mine["average"], mine["without CoLA"]) == ("70.0", "90.0")
    assert (bert["model"], bert["parameters"]) == ("BERT-base", "109 M")
    assert (bert["SST-2"], bert["STS-B Pearson"], bert["CoLA"]) == ("93.2", "", "58.9")
    assert (bert["average"], bert["without CoLA"]) == (f"{(93.2 + 58.9) / 2:.1f}", "93.2")
    assert len(others) == len(PUBLISHED) - 1
    assert "Averages are of SST-2, CoLA." in table
    assert all(f"- {each.name}: {each.source}" in table for each in PUBLISHED)


def test_without_a_common_task_there_is_no_average() -> None:
    mine, *_ = cells(render_table(results(stsb=[[0.8], [0.8]]), published=True))
    assert "average" not in mine


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("runs/mine/student", "mine"),
        ("runs/mine/student/", "mine"),
        ("org/model", "model"),
        ("student", "student"),
    ],
)
def test_a_students_name_is_that_of_its_run(model: str, name: str) -> None:
    assert model_name(model) == name


def test_every_task_has_a_title() -> None:
    assert set(TITLES) == set(GLUE)


@pytest.mark.parametrize(
    ("name", "average"),
    [("AutoDistil ProxyB", 81.7), ("AutoDistil ProxyS", 79.9), ("AutoDistil ProxyT", 72.6)],
)
def test_published_rows_have_the_averages_of_their_paper(name: str, average: float) -> None:
    (row,) = (each for each in PUBLISHED if each.name == name)
    assert mean(row.scores.values()) == pytest.approx(average, abs=0.1)
