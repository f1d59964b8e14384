"""What runs found, beside each other: one page from their results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_kdnas.errors import InvalidInput
from hf_kdnas.hub.sources import dataset_name, teacher_name
from hf_kdnas.report import view
from hf_kdnas.report.formats import NOTHING, count, duration, milliseconds, percent, score, times
from hf_kdnas.resources import recipe_names

INTRODUCTION = """\
# Results

<!-- Made by `kdnas gallery FOLDER ... --output docs/results.md` from results.json of runs. -->

What runs of the recipes found, one row a run. Scores are those on the reporting split, which neither
training nor search saw; *retained* is the student's part of its teacher's. A speed-up is over the teacher,
timed in turn on the machine named. Cost is the whole run's, with the teacher's fine-tuning where the cache
had none. What was asked for holds on the selection split, which students are chosen by.
"""

_COLUMNS = (
    *("seed", "student", "metric", "teacher's", "student's", "retained", "speed-up"),
    *("INT8 speed-up", "INT8 score", "parameters", "asked for", "cost"),
)


def find_results(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The results of all finished searches and distillations in folders, and in folders within them.

    Args:
        folders: Folders of runs, or folders that hold such.

    Raises:
        InvalidInput: If a folder holds none.
    """
    found: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        here = {path.resolve(): results for path in folder.rglob("results.json") if (results := _read(path))}
        if not here:
            raise InvalidInput(
                "FOLDER",
                str(folder),
                "it holds no results.json of a finished run",
                "Give folders of runs, or one that holds such.",
            )
        found |= here
    return sorted(found.values(), key=lambda each: (each["name"], each["seed"], each["created"]))


def gallery_text(runs: Sequence[Mapping[str, Any]]) -> str:
    """The page, as Markdown: a table for each recipe, and which of the package's recipes have none.

    Args:
        runs: What results.json holds, in order.
    """
    parts = [INTRODUCTION]
    names = dict.fromkeys(each["name"] for each in runs)
    parts += [_section(name, [each for each in runs if each["name"] == name]) for name in names]
    missing = [f"`{name}`" for name in recipe_names() if name not in names]
    if missing:
        parts.append(f"## Without a run here\n\n{', '.join(missing)}.\n")
    return "\n".join(parts)


def _read(path: Path) -> dict[str, Any] | None:
    """A run's results; None of another program, or of another command of ours."""
    try:
        return view.load_results(path.parent)
    except InvalidInput:
        return None


def _section(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    teachers = dict.fromkeys(f"{teacher_name(each)} ({each['teacher']['architecture']})" for each in runs)
    data = dict.fromkeys(dataset_name(each) for each in runs)
    places = dict.fromkeys(
        f"{view.target_text(each['latency_target'])}, {each['student']['latency']['device']}" for each in runs
    )
    lines = [
        f"## {name}",
        "",
        f"Teacher: {'; '.join(teachers)}. Data: {'; '.join(data)}. Latency: {'; '.join(places)}.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|---:|---|---|{'---:|' * (len(_COLUMNS) - 3)}",
        *(f"| {' | '.join(_cells(each))} |" for each in runs),
        "",
    ]
    return "\n".join(lines)


def _cells(results: Mapping[str, Any]) -> list[str]:
    student, int8 = results["student"], results["student"]["int8"]
    return [
        str(results["seed"]),
        f"`{student['architecture']}`",
        results["task"]["metric"],
        score(results["teacher"]["quality"]),
        score(student["quality"]),
        percent(results["retained"]),
        times(results["speedup"]),
        times(int8["speedup"] if int8 else None),
        score(int8["quality"] if int8 else None),
        count(student["parameters"]),
        _target(results),
        duration(view.total_seconds(results)),
    ]


def _target(results: Mapping[str, Any]) -> str:
    """What the student had to keep to, and whether it did on the selection split."""
    words = {
        "latency_ms": milliseconds,
        "speedup": times,
        "retained": percent,
        "parameters": count,
    }
    asked = [words[name](limit) for name, limit in results["constraints"].items() if limit is not None]
    if not asked:
        return NOTHING
    return f"{', '.join(asked)}: {'met' if results['constraints_met'] else 'not met'}"
