"""A student's first weights: random, sliced or projected, before and after the same distillation.

Shapes are cut from the quickstart's teacher and distilled by its recipe, with one learning rate for all;
scores are those on the selection split. Takes some 40 minutes on 2 CPU cores with 3 seeds; `--quick` some 10
minutes: one shape, one seed, 5,000 sentences.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import Benchmark, arguments, spread

from hf_kdnas import Architecture, load_recipe
from hf_kdnas.distill.data import DistillationCollator
from hf_kdnas.distill.training import train
from hf_kdnas.initialisation import METHODS, Initialiser
from hf_kdnas.materials import prepare_initialiser, prepare_signals
from hf_kdnas.plan import plan_search
from hf_kdnas.processes import join_processes
from hf_kdnas.progress import Narrator
from hf_kdnas.tasks import evaluate_model

SHAPES = ("4L-192H-768F-6A-gelu", "3L-192H-384F-6A-gelu", "3L-384H-1536F-12A-gelu")
SEEDS = (0, 1, 2)
EPOCHS = 1.0
# What projecting is said to be worth over slicing, in points of accuracy, on the first shape.
GAIN = 2.0


class Bench:
    """The quickstart's teacher, its signals and its rows."""

    def __init__(self, overrides: list[str]) -> None:
        self.plan = plan_search(load_recipe("quickstart", overrides))
        self.narrator = Narrator()
        processes = join_processes()
        self.initialiser = prepare_initialiser(self.plan, processes, self.narrator)
        self.signals = prepare_signals(self.plan, self.initialiser, processes, self.narrator)
        self.collator = DistillationCollator(self.plan.task.pad_token_id, self.signals)

    def cell(self, method: str, key: str, seed: int) -> dict[str, Any]:
        """Quality before and after distilling a shape from one kind of first weights."""
        task, section = self.plan.task, self.plan.recipe.distillation
        shape = Architecture.parse(key)
        full = self.initialiser
        maker = {
            "random": Initialiser("random", full.teacher),
            "slice": Initialiser("slice", full.teacher),
            "project": full,
        }[method]
        start = time.monotonic()
        student = maker.student(shape, seed)
        made = time.monotonic() - start
        before = evaluate_model(student, task.selection, task, precision="auto")
        with tempfile.TemporaryDirectory() as checkpoints:
            train(
                student,
                replace(section.training, epochs=EPOCHS),
                section.objectives,
                task.train,
                Path(checkpoints) / "checkpoints",
                seed=seed,
                teacher=self.signals,
                projection=maker.projection(shape),
                narrator=self.narrator,
                what=f"{method} {key}",
            )
        after = evaluate_model(student, task.selection, task, precision="auto")
        return {"before": before[task.metric], "after": after[task.metric], "seconds_to_make": made}


def main() -> None:
    """Run what is missing, and print the table and the targets."""
    options = arguments(__doc__ or "")
    name = "initialisation-quick" if options.quick else "initialisation"
    benchmark = Benchmark(name, options.cells)
    bench = Bench(["seed=0", *(["data.limit=5000"] if options.quick else [])])
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in SEEDS[:1] if options.quick else SEEDS:
        for key in SHAPES[:1] if options.quick else SHAPES:
            for method in METHODS:
                cell = benchmark.cell(
                    f"{key}/{method}/seed-{seed}",
                    lambda method=method, key=key, seed=seed: bench.cell(method, key, seed),
                )
                if cell:
                    found.setdefault((key, method), []).append(cell)
    after = {arm: [each["after"] for each in cells] for arm, cells in found.items()}
    sliced, projected = after.get((SHAPES[0], "slice")), after.get((SHAPES[0], "project"))
    if sliced and projected:
        gain = 100 * (sum(projected) / len(projected) - sum(sliced) / len(sliced))
        benchmark.target(
            gain >= GAIN, f"projected over sliced, {SHAPES[0]}", f"{gain:+.1f} points", f"{GAIN:+}"
        )
    benchmark.finish(
        ("shape", "first weights", "accuracy before", f"after {EPOCHS:g} epoch", "seconds to make", "seeds"),
        [
            (
                key,
                method,
                spread([each["before"] for each in cells]),
                spread([each["after"] for each in cells]),
                f"{sum(each['seconds_to_make'] for each in cells) / len(cells):.1f}",
                len(cells),
            )
            for (key, method), cells in found.items()
        ],
    )


if __name__ == "__main__":
    main()
