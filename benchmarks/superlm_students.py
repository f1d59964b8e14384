"""Students for three budgets: pulled from a SuperLM, against the same shapes without its training.

The SuperLMs are those of `superlm_ranking.py`, found in the same folder or trained now. For each budget of
parameters the member of least held-out loss is extracted (`kdnas superlm extract`), and its shape is also
sliced and projected from the teacher. All are fine-tuned alike by `kdnas evaluate` on MRPC, RTE and 10,000
sentences of SST-2, 3 seeds; scores are those on the validation splits.

Takes some 80 minutes on 2 CPU cores, beside training the SuperLMs; `--quick` some 5 minutes: the smallest
budget, 2,000 sentences of SST-2 alone, one seed. KDNAS_DATA or --data is a folder with text/ and glue/.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from harness import Benchmark, spread
from prepared import TITLES
from superlms import SuperLMs, arguments

from hf_kdnas import Architecture
from hf_kdnas.initialisation import Initialiser
from hf_kdnas.superlm.plan import plan_superlm
from hf_kdnas.superlm_workflows import Budget, extract_student, rank_superlms, train_superlms

# Millions of parameters: one within each space.
BUDGETS, QUICK_BUDGETS = (4, 9, 16), (4,)
SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
TASKS, QUICK_TASKS = ("mrpc", "rte", "sst2"), ("sst2",)
SUPERLM, WITHOUT = "superlm", ("slice", "project")


class Students:
    """Folders of students for a budget."""

    def __init__(self, superlms: SuperLMs) -> None:
        self._superlms = superlms
        self._recipe = superlms.recipe()
        self._initialiser = cache(self._prepared)

    def make(self, millions: int, arm: str) -> tuple[Architecture, Path]:
        """A student's shape, and its folder."""
        folder = self._superlms.folder / "students" / f"{millions}M-{arm}"
        if arm == SUPERLM:
            found = extract_student(self._recipe, folder, Budget(parameters=millions * 1_000_000))
            return Architecture.parse(found["architecture"]), folder
        shape, _ = self.make(millions, SUPERLM)
        student = self._initialiser(arm).student(shape, self._recipe.seed)
        student.save_pretrained(folder)
        plan_superlm(self._recipe).tokenizer.save_pretrained(folder)
        return shape, folder

    def _prepared(self, method: str) -> Initialiser:
        """The teacher, looked at as the SuperLM's own start was."""
        recipe = self._superlms.recipe(f"initialised/{method}", [f"superlm.initialisation={method}"])
        return self._superlms.opened(recipe, plan_superlm(recipe).spaces).initialiser()


def measured(
    superlms: SuperLMs,
    students: Students,
    millions: int,
    arm: str,
    tasks: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """A student's scores."""
    train_superlms(superlms.recipe())
    rank_superlms(superlms.recipe())
    shape, folder = students.make(millions, arm)
    return {"architecture": shape.key, "scores": superlms.fine_tuned(folder, tasks, seeds)}


def average(cell: Mapping[str, Any]) -> float:
    """Mean over tasks and seeds, in percent."""
    return 100 * statistics.fmean(statistics.fmean(values) for values in cell["scores"].values())


def main() -> None:
    """Run what is missing, and print the table and the targets."""
    options, superlms = arguments(__doc__ or "")
    benchmark = Benchmark(f"superlm_students{superlms.suffix}", options.cells)
    students = Students(superlms)
    tasks, seeds = (QUICK_TASKS, QUICK_SEEDS) if options.quick else (TASKS, SEEDS)
    rows = []
    for millions in QUICK_BUDGETS if options.quick else BUDGETS:
        cells: dict[str, dict[str, Any]] = {}
        for arm in (SUPERLM, *WITHOUT):
            measure = partial(measured, superlms, students, millions, arm, tasks, seeds)
            cell = benchmark.cell(f"{millions} M, {arm}", measure)
            if cell:
                cells[arm] = cell
                scores = [spread(cell["scores"][task]) for task in tasks]
                rows.append(
                    (f"{millions} M", cell["architecture"], arm, *scores, f"{average(cell):.1f}", len(seeds))
                )
        complete = len(cells) == 1 + len(WITHOUT)
        best = max((average(cells[arm]) for arm in WITHOUT if arm in cells), default=float("nan"))
        benchmark.target(
            complete and average(cells[SUPERLM]) > best,
            f"mean score at {millions} M parameters, from the SuperLM",
            f"{average(cells[SUPERLM]):.1f}" if SUPERLM in cells else "not run",
            f"above {best:.1f}, the better of sliced and projected",
        )
    header = ("budget", "shape", "first weights")
    benchmark.finish((*header, *(TITLES[task] for task in tasks), "mean", "seeds"), rows)


if __name__ == "__main__":
    main()
