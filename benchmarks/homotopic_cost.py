"""What narrowing costs: a step's scores of units, and a whole schedule against one at full width.

On GLUE SST-2 with the MiniLM teacher beside its student, in batches of 32, to half its width. Arms take
turns, round by round. A step is Trainer's whole step, with scores in the arm that is so named; a schedule
takes them in the last steps before a cut only (see `RunningImportance.memory`). What a schedule costs beside
plain distillation at the same widths is its seconds over those that its steps take as plain ones, each at
its segment's width: cuts, looks at the discrepancy and the making of every trainer are in it.

Takes about 60 minutes on 2 CPU cores; `--quick` about 10 minutes: fewer steps and rounds.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Benchmark, alternately, arguments, middle, ratios
from trainers import WARM_UP, Clock, mini_lm, sst2
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from hf_kdnas import Architecture, DistillationTrainer
from hf_kdnas.distill.training import shared_arguments, train
from hf_kdnas.homotopic.importance import RunningImportance
from hf_kdnas.homotopic.run import HomotopicDistillation
from hf_kdnas.homotopic.schedule import Segment, plan_segments
from hf_kdnas.progress import Narrator
from hf_kdnas.recipe import TrainingSection
from hf_kdnas.recipe_homotopic import HomotopicSection
from hf_kdnas.slicing import slice_student

TARGET = Architecture.parse("6L-192H-768F-12A-gelu")
WIDTHS = (TARGET, Architecture.parse("6L-384H-1536F-12A-gelu"))
OBJECTIVES: dict[str, dict[str, Any]] = {"logits": {}, "hidden": {}, "attention": {}, "embeddings": {}}
BATCH = 32
TRAINING = TrainingSection(epochs=1, batch_size=BATCH, precision="fp32", learning_rate=2e-4)
# Steps of a timed training, of a whole schedule, and rounds.
FULL, QUICK = (40, 800, 5), (16, 160, 3)
MOST_MORE = 1.05


class Scored(TrainerCallback):
    """Takes the scores of every step."""

    def __init__(self, student: PreTrainedModel) -> None:
        self._student = student
        self._running = RunningImportance(student)

    def on_pre_optimizer_step(self, *arguments: Any, **kwargs: Any) -> None:
        """Take them."""
        self._running.update(self._student)


class Bench:
    """The teacher, rows, and trainings of it.

    Args:
        steps: Of a timed training.
        whole: Steps of a whole schedule.
        folder: For what trainers write.
    """

    def __init__(self, steps: int, whole: int, folder: Path) -> None:
        self.teacher = mini_lm("eager").requires_grad_(False).eval()
        self.rows = sst2(max(steps, whole) * BATCH)
        self.steps, self.whole, self.folder = steps, whole, folder

    def step(self, number: int, shape: Architecture, *, scored: bool) -> float:
        """Seconds of a step of plain distillation, with or without scores."""
        student = slice_student(self.teacher, shape)
        options = {"objectives": OBJECTIVES, "save_strategy": "no", "seed": number}
        given = shared_arguments(TRAINING, self.folder / "steps", **options)
        rows = self.rows[: self.steps * BATCH]
        trainer = DistillationTrainer(student, given, self.teacher, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        if scored:
            trainer.add_callback(Scored(student))
        clock = Clock(self.steps, torch.device("cpu"))
        trainer.add_callback(clock)
        trainer.train()
        return clock.seconds / (self.steps - WARM_UP)

    def at_full_width(self, number: int) -> float:
        """Seconds of a plain distillation of a student as wide as its teacher."""
        folder = self.folder / "plain"
        shutil.rmtree(folder, ignore_errors=True)
        begun = time.perf_counter()
        train(
            slice_student(self.teacher, WIDTHS[1]),
            TRAINING,
            OBJECTIVES,
            self._whole_rows,
            folder,
            seed=number,
            teacher=self.teacher,
            narrator=Narrator(),
            what="full width",
        )
        return time.perf_counter() - begun

    def narrowed(self, number: int) -> float:
        """Seconds of a distillation that ends at half the width, with cuts and looks at the discrepancy."""
        section = HomotopicSection(target=TARGET.key, evaluation_steps=self.whole)
        folder = self.folder / "narrowed"
        shutil.rmtree(folder, ignore_errors=True)
        begun = time.perf_counter()
        HomotopicDistillation(
            teacher=self.teacher,
            signals=None,
            segments=segments(self.teacher, self.whole),
            section=section,
            training=TRAINING,
            objectives=OBJECTIVES,
            rows=self._whole_rows,
            held_out=self.rows[:64],
            masking=None,
            seed=number,
            narrator=Narrator(),
        ).run(folder)
        return time.perf_counter() - begun

    def at_the_same_widths(self, number: int) -> float:
        """Seconds that the steps of the schedule take as plain ones, each at its segment's width."""
        return sum(
            (each.end - each.start) * self.step(number, each.shape, scored=False)
            for each in segments(self.teacher, self.whole)
        )

    @property
    def _whole_rows(self) -> Sequence[Mapping[str, Any]]:
        return self.rows[: self.whole * BATCH]


def segments(teacher: PreTrainedModel, steps: int) -> list[Segment]:
    """The schedule of a training of so many steps."""
    return plan_segments(teacher.config, TARGET, steps)


def main() -> None:
    """Run what is missing, and print the table and the targets."""
    options = arguments(__doc__ or "")
    name = "homotopic_cost-quick" if options.quick else "homotopic_cost"
    benchmark = Benchmark(name, options.cells)
    steps, whole, rounds = QUICK if options.quick else FULL
    bench = Bench(steps, whole, options.runs / name)
    rows: list[tuple[str, str]] = []
    for shape in WIDTHS:
        arms = {
            "plain": partial(bench.step, shape=shape, scored=False),
            "scored": partial(bench.step, shape=shape, scored=True),
        }
        cell = benchmark.cell(
            f"step, {shape}", lambda arms=arms: {"seconds_per_step": alternately(arms, rounds)}
        )
        if cell:
            found = ratios(cell["seconds_per_step"]["scored"], cell["seconds_per_step"]["plain"])
            rows.append((f"a step with scores, times one without, {shape}", middle(found)))
            benchmark.target(
                statistics.median(found) <= MOST_MORE,
                f"a step with scores, {shape}",
                f"{middle(found)} times",
                f"{MOST_MORE}",
            )
    cell = benchmark.cell(
        "whole schedule",
        lambda: {
            "seconds": alternately(
                {
                    "full width": bench.at_full_width,
                    "narrowed": bench.narrowed,
                    "same widths": bench.at_the_same_widths,
                },
                rounds,
            ),
            "steps": whole,
        },
    )
    if cell:
        schedule = f"a schedule of {cell['steps']} steps"
        for arm, words, most in (
            ("same widths", "plain steps of its widths", MOST_MORE),
            ("full width", "full width, cuts and all", 1.0),
        ):
            found = ratios(cell["seconds"]["narrowed"], cell["seconds"][arm])
            rows.append((f"{schedule}, times {words}", middle(found)))
            reached = statistics.median(found) <= most
            benchmark.target(reached, f"{schedule} over {arm}", f"{middle(found)} times", f"{most}")
    benchmark.finish(("what", "ratio"), rows)


if __name__ == "__main__":
    main()
