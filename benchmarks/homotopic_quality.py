"""Whether narrowing a student while it is distilled beats a narrow student from the first step on: on text.

The MiniLM teacher over WikiText-2 and the novels, to half its width, 10 minutes of training an arm. An arm
that is narrow from the first step on is cheaper: it takes as many steps as the narrowed one has seconds
for, and where it stood after as many steps is read from its course. All arms have the same terms and
learned maps. Their held-out discrepancy is looked at over the steps (HomoDistil's Figure 2), and each
student is fine-tuned by `kdnas evaluate` on MRPC and 10,000 sentences of SST-2, 3 seeds.

Takes some 75 minutes on 2 CPU cores; `--quick` some 8 minutes: a minute an arm, one seed, SST-2 alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import prepared
import torch
from harness import Benchmark, results_of, spread
from prepared import TITLES, Prepared

from hf_kdnas import Architecture, load_recipe, workflows
from hf_kdnas.distill.data import DistillationCollator
from hf_kdnas.distill.training import run_trainer, shared_arguments
from hf_kdnas.homotopic.schedule import Segment
from hf_kdnas.homotopic.trainer import HomotopicTrainer
from hf_kdnas.plan import plan_distillation
from hf_kdnas.processes import join_processes
from hf_kdnas.run import RunFolder
from hf_kdnas.stages import Stages

TARGET = Architecture.parse("6L-192H-768F-12A-gelu")
TERMS = "distillation.objectives={hidden: {}, attention: {}, embeddings: {}}"
LOOKS = 20
EPOCHS = 3.0
# Of the terms, the one that no learned map stands in.
KEY = "discrepancy_attention"
NARROWED, PROJECTED = "narrowed", "projected at once"
# Further settings of the arms that are narrowed; how the others begin.
ARMS_NARROWED: dict[str, list[str]] = {
    NARROWED: [],
    "narrowed, by magnitude": ["homotopic.importance=magnitude"],
}
ARMS_AT_ONCE = {PROJECTED: "project", "drawn": "random"}


@dataclass(frozen=True)
class Scale:
    """How large the benchmark is.

    Attributes:
        steps: Of an arm that is narrowed: some 10 minutes.
        pilot: Steps that tell how long one of a narrow student takes.
        sentences: Of SST-2's training split.
        tasks: That students are fine-tuned on.
        seeds: Of the fine-tunings.
    """

    steps: int
    pilot: int
    sentences: int
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]


FULL = Scale(900, 60, 10_000, ("mrpc", "sst2"), (0, 1, 2))
QUICK = Scale(90, 16, 2_000, ("sst2",), (0,))


class Arms:
    """The students.

    Args:
        scale: How large.
        data: What is learned from and scored by.
        folder: Of the runs.
    """

    def __init__(self, scale: Scale, data: Prepared, folder: Path) -> None:
        self.scale, self.data, self.folder = scale, data, folder

    def narrowed(self, arm: str) -> dict[str, Any]:
        """A student that begins as its teacher."""
        recipe = self._recipe(arm, self.scale.steps, [f"homotopic.target={TARGET.key}", *ARMS_NARROWED[arm]])
        workflows.homotopic(recipe, resume=True)
        results = results_of(Path(recipe.output_dir))
        course = results["homotopic"]["discrepancy"]
        student = Path(recipe.output_dir) / "student"
        return self._figures(arm, student, self.scale.steps, results["seconds"]["distillation"], course)

    def at_once(self, arm: str, seconds: float) -> dict[str, Any]:
        """A student of the target's shape from the first step on, trained for so many seconds."""
        method = ARMS_AT_ONCE[arm]
        pilot, _, _ = self._trained(f"{arm}-pilot", method, self.scale.pilot)
        steps = round(seconds / pilot * self.scale.pilot)
        taken, student, course = self._trained(arm, method, steps)
        return self._figures(arm, student, steps, taken, course)

    def _trained(self, arm: str, method: str, steps: int) -> tuple[float, Path, list[dict[str, float]]]:
        recipe = self._recipe(arm, steps, [f"student={TARGET.key}", f"distillation.initialisation={method}"])
        folder = RunFolder(Path(recipe.output_dir))
        stages = Stages(plan_distillation(recipe), folder, join_processes())
        stages.prepare()
        teacher, section = stages.initialiser.teacher, recipe.distillation
        collator = DistillationCollator(stages.plan.task.pad_token_id)
        student, held_out = stages.initialiser.student(TARGET, recipe.seed), stages.plan.task.selection[:64]
        size = section.training.batch_size
        trainer = HomotopicTrainer(
            student,
            shared_arguments(
                section.training,
                folder / "checkpoints",
                objectives=section.objectives,
                seed=recipe.seed,
                save_strategy="no",
            ),
            teacher,
            train_dataset=list(stages.plan.task.train),
            segment=Segment(0, steps, TARGET),
            running=None,
            teacher_units=torch.arange(TARGET.hidden_size),
            reference=teacher,
            held_out=[collator(held_out[start : start + size]) for start in range(0, len(held_out), size)],
            evaluation_steps=self._every(steps),
        )
        begun = time.perf_counter()
        run_trainer(trainer, folder / "checkpoints", stages.narrator, arm)
        seconds = time.perf_counter() - begun
        student.save_pretrained(folder / "student")
        stages.plan.tokenizer.save_pretrained(folder / "student")
        looks = [each for each in trainer.state.log_history if KEY in each]
        return seconds, folder / "student", looks

    def _recipe(self, arm: str, steps: int, overrides: list[str]) -> Any:
        return load_recipe(
            "homodistil_minilm",
            [
                f"output_dir={self.folder / _file_name(arm)}",
                f"data.path={self.data.texts()}",
                "data.where=null",
                "data.group=null",
                # Enough paragraphs to look at: what counts is scored on GLUE.
                "data.reporting_fraction=0.01",
                "data.selection_fraction=0.01",
                "distillation.signals.cache=false",  # no arm sees all rows
                TERMS,
                "homotopic.maps=learned",
                f"homotopic.evaluation_steps={self._every(steps)}",
                f"distillation.training.training_arguments={{max_steps: {steps}}}",
                *overrides,
            ],
        )

    def _every(self, steps: int) -> int:
        return max(1, steps // LOOKS)

    def _figures(
        self, arm: str, student: Path, steps: int, seconds: float, course: Sequence[Mapping[str, float]]
    ) -> dict[str, Any]:
        folder = self.folder / "evaluated" / _file_name(arm)
        scores = self.data.fine_tuned(student, self.scale.tasks, self.scale.seeds, EPOCHS, folder)
        return {"steps": steps, "seconds": seconds, "course": course, "scores": scores}


def _file_name(arm: str) -> str:
    return arm.replace(", ", "-").replace(" ", "-")


def after(course: Sequence[Mapping[str, float]], steps: float) -> float:
    """The held-out discrepancy at the last look at or before a step."""
    return [each[KEY] for each in course if each["step"] <= steps][-1]


def row(arm: str, cell: Mapping[str, Any], scale: Scale) -> tuple[str, ...]:
    """An arm's line of the table."""
    steps = (0, scale.steps / 2, scale.steps, cell["steps"])
    course = ", ".join(f"{after(cell['course'], step):.3f}" for step in steps)
    scores = (spread(cell["scores"][task]) for task in scale.tasks)
    return (arm, str(cell["steps"]), f"{cell['seconds']:.0f}", course, *scores)


def main() -> None:
    """Run what is missing, and print the table and the targets."""
    options = prepared.arguments(__doc__ or "")
    scale, name = (QUICK, "homotopic_quality-quick") if options.quick else (FULL, "homotopic_quality")
    benchmark, folder = Benchmark(name, options.cells), options.runs / name
    arms = Arms(scale, Prepared(folder, options.data, scale.sentences), folder)
    cells: dict[str, dict[str, Any]] = {}
    for arm in (*ARMS_NARROWED, *ARMS_AT_ONCE):
        if arm in ARMS_NARROWED:
            measure = partial(arms.narrowed, arm)
        elif NARROWED in cells:
            measure = partial(arms.at_once, arm, cells[NARROWED]["seconds"])
        else:
            continue  # has as many seconds as the narrowed one took
        if cell := benchmark.cell(arm, measure):
            cells[arm] = cell
    if {NARROWED, PROJECTED} <= cells.keys():
        ours, theirs = cells[NARROWED], cells[PROJECTED]
        largest = [max(each[KEY] for each in arm["course"]) for arm in (ours, theirs)]
        benchmark.target(
            largest[0] < largest[1],
            "largest discrepancy on the way",
            f"{largest[0]:.3f}",
            f"below {largest[1]:.3f}, projected at once",
        )
        for task in scale.tasks:
            gain = 100 * (fmean(ours["scores"][task]) - fmean(theirs["scores"][task]))
            what = f"{TITLES[task]}, narrowed over projected at once"
            benchmark.target(gain > 0, what, f"{gain:+.1f} points", "above 0")
    course = "discrepancy of attention: at first, at half and all of the narrowed one's steps, at last"
    benchmark.finish(
        ("student", "steps", "seconds", course, *(TITLES[task] for task in scale.tasks)),
        [row(arm, cell, scale) for arm, cell in cells.items()],
    )


if __name__ == "__main__":
    main()
