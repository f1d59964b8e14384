"""Whether narrowing a student while it is distilled beats a narrow student from the first step on: on text.

The MiniLM teacher over WikiText-2 and the novels, to half its width, some 10 minutes of training an arm. An
arm that is narrow from the first step on is cheaper: it takes as many steps as the narrowed one has seconds
for, and where it stood after as many steps is read from its course (its learning rate had not yet fallen to 0
there, as the narrowed one's had). All arms have the same terms. Those of hidden states are relative to the
teacher's variance, by its own units where a student is narrowed and by the projection where it begins
projected; only a drawn student has nothing to compare but by maps that it learns. Their discrepancy on the
same held-out rows is looked at over the steps (HomoDistil's Figure 2), in seconds that no arm is charged for.
One student an arm is distilled, and fine-tuned by `kdnas evaluate` on MRPC and 10,000 sentences of SST-2, 3
seeds.

Without distillation terms nothing is left to learn from text: this teacher has no masked-LM head. That arm
is in `homotopic_task.py`, where there are labels.

Takes some 75 minutes on 2 CPU cores; `--quick` some 8 minutes: a minute an arm, one seed, SST-2 alone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import prepared
import torch
from harness import Benchmark, spread
from prepared import TITLES, Prepared
from transformers import PreTrainedModel

from hf_kdnas import Architecture, load_recipe
from hf_kdnas.distill.data import DistillationCollator
from hf_kdnas.distill.training import run_trainer, shared_arguments
from hf_kdnas.homotopic.plan import plan_homotopic, pruning_of, segments_of
from hf_kdnas.homotopic.run import HomotopicDistillation
from hf_kdnas.homotopic.schedule import Segment
from hf_kdnas.homotopic.trainer import HomotopicTrainer
from hf_kdnas.plan import plan_distillation
from hf_kdnas.processes import join_processes
from hf_kdnas.pruning import OneTarget
from hf_kdnas.run import RunFolder
from hf_kdnas.stages import Stages
from hf_kdnas.tasks import Row

TARGET = Architecture.parse("6L-192H-768F-12A-gelu")
TERMS = "distillation.objectives={hidden: {}, attention: {}, embeddings: {}}"
LOOKS, LOOKED_AT = 20, 64
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


FULL = Scale(900, 100, 10_000, ("mrpc", "sst2"), (0, 1, 2))
QUICK = Scale(90, 30, 2_000, ("sst2",), (0,))


class Looks:
    """Seconds that trainers spend on looks at the discrepancy."""

    seconds = 0.0


@contextmanager
def looks_apart() -> Iterator[Looks]:
    """Time the looks: they are the benchmark's, not a part of any arm."""
    looks, look = Looks(), HomotopicTrainer.look

    def apart(trainer: HomotopicTrainer) -> None:
        begun = time.perf_counter()
        look(trainer)
        looks.seconds += time.perf_counter() - begun

    HomotopicTrainer.look = apart
    try:
        yield looks
    finally:
        HomotopicTrainer.look = look


def timed(train: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a training without its looks, and what it returned."""
    begun = time.perf_counter()
    with looks_apart() as looks:
        result = train()
    return time.perf_counter() - begun - looks.seconds, result


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
        stages = OneTarget(plan_homotopic(recipe), RunFolder(Path(recipe.output_dir)), join_processes())
        stages.prepare()
        checkpoints = Path(recipe.output_dir) / "checkpoints"
        shutil.rmtree(checkpoints, ignore_errors=True)  # what an interrupted cell left has no seconds
        distillation = HomotopicDistillation(
            teacher=stages.initialiser.teacher,
            signals=None,
            segments=segments_of(stages.plan, TARGET),
            section=pruning_of(recipe),
            training=recipe.distillation.training,
            objectives=recipe.distillation.objectives,
            rows=stages.plan.task.train,
            held_out=looked_at(stages),
            masking=None,
            seed=recipe.seed,
            narrator=stages.narrator,
        )
        seconds, (student, history) = timed(lambda: distillation.run(checkpoints))
        return self._figures(arm, stages, student, self.scale.steps, seconds, history)

    def at_once(self, arm: str, seconds: float) -> dict[str, Any]:
        """A student of the target's shape from the first step on, trained for so many seconds."""
        taken, *_ = self._trained(f"{arm}-pilot", ARMS_AT_ONCE[arm], self.scale.pilot)
        steps = round(seconds / taken * self.scale.pilot)
        taken, stages, trainer = self._trained(arm, ARMS_AT_ONCE[arm], steps)
        return self._figures(arm, stages, trainer.model, steps, taken, trainer.state.log_history)

    def _trained(self, arm: str, method: str, steps: int) -> tuple[float, Stages, HomotopicTrainer]:
        recipe = self._recipe(arm, steps, [f"student={TARGET.key}", f"distillation.initialisation={method}"])
        stages = Stages(plan_distillation(recipe), RunFolder(Path(recipe.output_dir)), join_processes())
        stages.prepare()
        checkpoints = Path(recipe.output_dir) / "checkpoints"
        shutil.rmtree(checkpoints, ignore_errors=True)
        teacher, section = stages.initialiser.teacher, recipe.distillation
        held_out, size = looked_at(stages), section.training.batch_size
        collator = DistillationCollator(stages.plan.task.pad_token_id)
        trainer = HomotopicTrainer(
            stages.initialiser.student(TARGET, recipe.seed),
            shared_arguments(
                section.training,
                checkpoints,
                objectives=section.objectives,
                seed=recipe.seed,
                save_strategy="no",
            ),
            teacher,
            projection=stages.initialiser.projection(TARGET),
            train_dataset=list(stages.plan.task.train),
            segment=Segment(0, steps, TARGET),
            running=None,
            teacher_units=torch.arange(TARGET.hidden_size),
            reference=teacher,
            held_out=[collator(held_out[start : start + size]) for start in range(0, len(held_out), size)],
            evaluation_steps=self._every(steps),
        )
        seconds, _ = timed(lambda: run_trainer(trainer, checkpoints, stages.narrator, arm))
        return seconds, stages, trainer

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
                "homotopic.maps=kept",
                f"homotopic.evaluation_steps={self._every(steps)}",
                f"homotopic.held_out={LOOKED_AT}",
                f"distillation.training.training_arguments={{max_steps: {steps}}}",
                *overrides,
            ],
        )

    def _every(self, steps: int) -> int:
        return max(1, steps // LOOKS)

    def _figures(
        self,
        arm: str,
        stages: Stages,
        student: PreTrainedModel,
        steps: int,
        seconds: float,
        history: Sequence[Mapping[str, float]],
    ) -> dict[str, Any]:
        folder = self.folder / _file_name(arm) / "student"
        student.save_pretrained(folder)
        stages.plan.tokenizer.save_pretrained(folder)
        evaluated = self.folder / "evaluated" / _file_name(arm)
        scores = self.data.fine_tuned(folder, self.scale.tasks, self.scale.seeds, EPOCHS, evaluated)
        course = [each for each in history if KEY in each]
        return {"steps": steps, "seconds": seconds, "course": course, "scores": scores}


def looked_at(stages: Stages) -> list[Row]:
    """Rows that are not trained on, the same for every arm."""
    rows = list(stages.plan.task.selection)
    return rows[:: max(1, len(rows) // LOOKED_AT)][:LOOKED_AT]


def _file_name(arm: str) -> str:
    return arm.replace(", ", "-").replace(" ", "-")


def after(course: Sequence[Mapping[str, float]], steps: float) -> float:
    """The held-out discrepancy at the last look at or before a step."""
    return [each[KEY] for each in course if each["step"] <= steps][-1]


def row(arm: str, cell: Mapping[str, Any], scale: Scale) -> tuple[str, ...]:
    """An arm's line of the table."""
    steps = (0, scale.steps / 2, scale.steps, cell["steps"])
    course = ", ".join(f"{after(cell['course'], step):.4f}" for step in steps)
    course += f"; {max(each[KEY] for each in cell['course'] if each['step']):.4f}"
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
        for steps, when in ((scale.steps, "after as many steps"), (theirs["steps"], "after as many seconds")):
            found, beside = after(ours["course"], scale.steps), after(theirs["course"], steps)
            benchmark.target(
                found < beside,
                f"discrepancy {when}, narrowed and projected at once",
                f"{found:.4f}",
                f"below {beside:.4f}",
            )
        for task in scale.tasks:
            gain = 100 * (fmean(ours["scores"][task]) - fmean(theirs["scores"][task]))
            what = f"{TITLES[task]}, narrowed over projected at once"
            benchmark.target(gain > 0, what, f"{gain:+.1f} points", "above 0")
    course = (
        "discrepancy of attention: at first, at half and all of the narrowed one's steps, at last; "
        "largest after the first"
    )
    benchmark.finish(
        ("student", "steps", "seconds", course, *(TITLES[task] for task in scale.tasks)),
        [row(arm, cell, scale) for arm, cell in cells.items()],
    )


if __name__ == "__main__":
    main()
