"""What benchmarks share: cells that are kept, a JSON with hardware and versions, a table, targets."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_kdnas.environment import environment
from hf_kdnas.run import read_json, write_json

RESULTS = Path(__file__).parent / "results"


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a small form, really measured")
    made.add_argument("--cells", default="", help="run only cells whose name holds this text")
    made.add_argument("--runs", type=Path, default=Path("runs/benchmarks"), help="folder of the runs")
    return made


def arguments(description: str) -> argparse.Namespace:
    """The command line of a benchmark without options of its own."""
    return parser(description).parse_args()


@dataclass
class Benchmark:
    """Finished cells of a benchmark, in `results/NAME.json`.

    Attributes:
        name: Of the file, with `-quick` for the small form.
        only: Cells whose name doesn't hold this text are not run.
    """

    name: str
    only: str = ""
    targets: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The JSON file."""
        return RESULTS / f"{self.name}.json"

    @property
    def cells(self) -> dict[str, Any]:
        """Finished cells by name."""
        return (read_json(self.path) or {"cells": {}})["cells"]

    def cell(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """A cell's figures: kept from before, measured now, or None if it was not asked for."""
        if name not in self.cells and self.only in name:
            print(f"--- {name}", flush=True)
            figures = {**measure(), "environment": environment()}
            write_json(self.path, {"benchmark": self.name, "cells": {**self.cells, name: figures}})
        return self.cells.get(name)

    def target(self, reached: bool | None, what: str, measured: str, wanted: str) -> None:
        """Note a target; None means that it was not measured."""
        self.targets.append(f"{'PASS' if reached else 'SHORT'}  {what}  {measured}  {wanted}")

    def finish(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print the table and, last, one line a target; keep both in the JSON."""
        table = markdown(header, rows)
        write_json(
            self.path, {"benchmark": self.name, "cells": self.cells, "table": table, "targets": self.targets}
        )
        print("\n".join(["", *table, "", *self.targets]))


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table's lines."""
    body = [[str(value) for value in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in [list(header), ["---"] * len(header), *body]]


def spread(values: Sequence[float], digits: int = 1, scale: float = 100.0) -> str:
    """Mean and, of several values, standard deviation."""
    mean = statistics.fmean(values) * scale
    if len(values) == 1:
        return f"{mean:.{digits}f} (1 seed)"
    return f"{mean:.{digits}f} ± {statistics.stdev(values) * scale:.{digits}f}"


def alternately(arms: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """What each arm measures in each round: all arms in turn, every second round the other way round.

    Args:
        arms: Measures one arm, given the number of the round, from 0.
        rounds: Number of rounds.
    """
    found: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            found[name].append(arms[name](number))
            print(f"    round {number + 1} of {rounds}: {name} {found[name][-1]:.4g}", flush=True)
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """One arm over another, round by round, so that what slowed a whole round cancels."""
    return [each / other for each, other in zip(over, under, strict=True)]


def middle(values: Sequence[float], digits: int = 2) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def results_of(folder: Path) -> dict[str, Any]:
    """A finished run's results."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))
