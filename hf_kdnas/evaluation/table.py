"""The table of an evaluation, as papers print it: a row a model, a column a task and metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hf_kdnas.evaluation.published import PUBLISHED
from hf_kdnas.metrics import GLUE

# In the order of the papers.
TITLES = {
    "mnli": "MNLI",
    "qqp": "QQP",
    "qnli": "QNLI",
    "sst2": "SST-2",
    "cola": "CoLA",
    "stsb": "STS-B",
    "mrpc": "MRPC",
    "rte": "RTE",
    "wnli": "WNLI",
}
_METRICS = {"accuracy": " acc", "f1": " F1", "pearson": " Pearson", "spearman": " Spearman"}
_SPLITS = {"validation_matched": "-m", "validation_mismatched": "-mm"}

Values = Sequence[float | None]
"""A figure of each seed, in percent; None where the model diverged."""


@dataclass(frozen=True)
class _Row:
    """A model's row.

    Attributes:
        name: The model's.
        millions: Of parameters.
        columns: Figures by the column's title.
    """

    name: str
    millions: float
    columns: dict[str, Values]


def render_table(results: Mapping[str, Any], *, published: bool = False) -> str:
    """The table, in Markdown, and what has to be known to read it.

    Args:
        results: What `results.json` of an evaluation holds.
        published: Put the rows of published models below, and average over the tasks that all rows have.
    """
    rows = [_measured(results)]
    if published:
        rows += [
            _Row(each.name, each.millions, {_first(task): [score] for task, score in each.scores.items()})
            for each in PUBLISHED
        ]
    averaged = [task for task in TITLES if all(_first(task) in row.columns for row in rows)]
    without_cola = [task for task in averaged if task != "cola"]
    averages = {"average": averaged, "without CoLA": without_cola if without_cola != averaged else []}
    averages = {title: tasks for title, tasks in averages.items() if tasks}
    titles = list(rows[0].columns)
    lines = [
        [
            row.name,
            f"{row.millions:.3g} M",
            *(_text(row.columns[title]) if title in row.columns else "" for title in titles),
            *(_text(_average(row, tasks)) for tasks in averages.values()),
        ]
        for row in rows
    ]
    table = _markdown(["model", "parameters", *titles, *averages], lines)
    return "\n".join([*table, "", *_notes(results, [_first(task) for task in averaged], published)])


def _measured(results: Mapping[str, Any]) -> _Row:
    found = results["tasks"]
    columns: dict[str, Values] = {}
    for task in (each for each in TITLES if each in found):
        for split in GLUE[task].splits:
            for metric in GLUE[task].metrics:
                values = found[task]["scores"][split][metric]
                columns[_title(task, split, metric)] = [
                    None if value is None else 100 * value for value in values
                ]
    return _Row(model_name(results["model"]), results["parameters"] / 1e6, columns)


def model_name(model: str) -> str:
    """What a model is called in a table: the last part of its place; of a run's student the run's name."""
    path = Path(model)
    return path.parent.name if path.name == "student" and path.parent.name else path.name


def _title(task: str, split: str, metric: str) -> str:
    several = len(GLUE[task].metrics) > 1
    return f"{TITLES[task]}{_SPLITS.get(split, '')}{_METRICS[metric] if several else ''}"


def _first(task: str) -> str:
    """Title of the column that counts in averages."""
    return _title(task, GLUE[task].splits[0], GLUE[task].metrics[0])


def _average(row: _Row, tasks: Sequence[str]) -> Values:
    """Mean over tasks, seed by seed."""
    seeds = zip(*(row.columns[_first(task)] for task in tasks), strict=True)
    return [_mean(values) for values in seeds]


def _mean(values: Values) -> float | None:
    finite = [value for value in values if value is not None]
    return mean(finite) if len(finite) == len(values) else None


def _text(values: Values) -> str:
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return "diverged"
    return f"{mean(finite):.1f}" + (f" ± {stdev(finite):.1f}" if len(finite) > 1 else "")


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    return [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in (header, rule, *lines)]


def _notes(results: Mapping[str, Any], averaged: Sequence[str], published: bool) -> list[str]:
    seeds = results["seeds"]
    spread = "mean ± standard deviation over seeds" if len(seeds) > 1 else "one seed,"
    notes = [
        f"Percent on GLUE's validation splits, {spread} {', '.join(map(str, seeds))}.",
        f"Averages are of {', '.join(averaged)}." if averaged else "No task is in all rows: no averages.",
    ]
    if published:
        notes += ["", "Published figures, each one run or a mean as its source has it:", ""]
        notes += [f"- {each.name}: {each.source}" for each in PUBLISHED]
    return notes
