"""The runs of an evaluation: each fine-tunes the model once, on one rank, and is kept as one file.

Where there is more than one grid point, a task's runs come twice. First each point is trained on a part of
the training rows and scored on the rest; then the best point is trained on all of them. The validation
splits are read for that one alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, TypeAlias

from accelerate.utils import gather_object

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.data import DistillationCollator
from hf_kdnas.distill.loop import train_alone
from hf_kdnas.environment import environment
from hf_kdnas.errors import InvalidInput
from hf_kdnas.metrics import GLUE
from hf_kdnas.processes import from_first
from hf_kdnas.progress import Narrator
from hf_kdnas.recipe import TrainingSection
from hf_kdnas.run import read_json, write_json
from hf_kdnas.tasks import evaluate_model

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from transformers import PreTrainedModel

    from hf_kdnas.evaluation.suite import Suite
    from hf_kdnas.run import RunFolder
    from hf_kdnas.tasks import Row, TaskData

Scores: TypeAlias = dict[str, dict[str, float | None]]
"""By split and metric; None where the model diverged."""

HELD_OUT = "held_out"


@dataclass(frozen=True)
class Point:
    """A point of the grid.

    Attributes:
        learning_rate: The highest.
        epochs: Passes over the rows.
        batch_size: Rows per step.
    """

    learning_rate: float
    epochs: float
    batch_size: int

    def __str__(self) -> str:
        return f"lr {self.learning_rate:g}, {self.epochs:g} epochs, batch {self.batch_size}"


@dataclass(frozen=True)
class Run:
    """One fine-tuning.

    Attributes:
        task: GLUE's name of the task.
        point: How it is trained.
        seed: Decides the head, dropout and the order of the rows.
        choosing: Whether it is scored on rows held out of training, not on the validation splits.
    """

    task: str
    point: Point
    seed: int
    choosing: bool

    def __str__(self) -> str:
        return f"{self.task}, {self.point}, seed {self.seed}{', to choose' if self.choosing else ''}"


@dataclass(frozen=True)
class Evaluation:
    """All runs of an evaluation.

    Attributes:
        suite: The model and its tasks.
        folder: Keeps what each run scored.
        processes: The ranks of this launch.
    """

    suite: Suite
    folder: RunFolder
    processes: PartialState

    @cached_property
    def _grid(self) -> list[Point]:
        section = self.suite.section
        return [
            Point(*point)
            for point in itertools.product(section.learning_rates, section.epochs, section.batch_sizes)
        ]

    def run(self) -> dict[str, Any]:
        """Do the runs that are missing.

        Returns:
            What `results.json` holds, on every rank.

        Raises:
            InvalidInput: If a task diverges at every point of the grid.
        """
        tasks, seeds = self.suite.section.tasks, self.suite.section.seeds
        tried: dict[Run, Scores] = {}
        if len(self._grid) > 1:
            tried = self._carry_out(
                [Run(*each, choosing=True) for each in itertools.product(tasks, self._grid, seeds)]
            )
        chosen = {task: self._choose(task, tried) for task in tasks}
        scored = self._carry_out(
            [Run(task, chosen[task], seed, choosing=False) for task in tasks for seed in seeds]
        )
        return {
            "model": self.suite.model.model,
            "parameters": self.suite.parameters,
            "seeds": seeds,
            "tasks": {task: self._task_results(task, chosen[task], tried, scored) for task in tasks},
            "settings": asdict(self.suite.section),
            "environment": {**environment(), "processes": str(self.processes.num_processes)},
        }

    def _carry_out(self, runs: Sequence[Run]) -> dict[Run, Scores]:
        jobs = [(self.suite, run) for run in runs]
        return dict(zip(runs, carry_out(jobs, self.folder.path, self.processes), strict=True))

    def _choose(self, task: str, tried: dict[Run, Scores]) -> Point:
        """The point with the highest mean on the held-out rows; of equals the first."""
        if len(self._grid) == 1:
            return self._grid[0]
        means = {point: self._mean_held_out(task, point, tried) for point in self._grid}
        finite = {point: value for point, value in means.items() if value is not None}
        if not finite:
            raise InvalidInput(
                "learning_rates",
                self.suite.section.learning_rates,
                f"{task} diverges at every point of the grid",
                "Add a lower learning rate, and go on with --resume.",
            )
        return max(finite, key=lambda point: finite[point])

    def _mean_held_out(self, task: str, point: Point, tried: dict[Run, Scores]) -> float | None:
        values = self._held_out(task, point, tried)
        finite = [value for value in values if value is not None]
        return mean(finite) if len(finite) == len(values) else None

    def _held_out(self, task: str, point: Point, tried: dict[Run, Scores]) -> list[float | None]:
        """Held-out scores of a grid point, seed by seed."""
        metric = GLUE[task].metrics[0]
        return [
            tried[Run(task, point, seed, choosing=True)][HELD_OUT][metric]
            for seed in self.suite.section.seeds
        ]

    def _task_results(
        self, task: str, chosen: Point, tried: dict[Run, Scores], scored: dict[Run, Scores]
    ) -> dict[str, Any]:
        """The point that was chosen, how, and each metric of each split, seed by seed."""
        runs = [Run(task, chosen, seed, choosing=False) for seed in self.suite.section.seeds]
        return {
            "chosen": asdict(chosen),
            "grid": [
                {**asdict(point), HELD_OUT: self._held_out(task, point, tried)}
                for point in self._grid
                if tried
            ],
            "scores": {
                split: {metric: [scored[run][split][metric] for run in runs] for metric in GLUE[task].metrics}
                for split in GLUE[task].splits
            },
        }


def carry_out(jobs: Sequence[tuple[Suite, Run]], folder: Path, processes: PartialState) -> list[Scores]:
    """Scores of runs, in their order, on every rank; those that are missing are shared out.

    Args:
        jobs: Models with their tasks, and a run of each; runs of one task have the same rows.
        folder: Keeps what each run scored.
        processes: The ranks of this launch.
    """
    narrator = Narrator(processes.is_main_process)
    missing = [place for place, job in enumerate(jobs) if not _file(folder, *job).exists()]
    missing = from_first(missing, processes)
    mine = missing[processes.process_index :: processes.num_processes]
    found: list[tuple[int, Scores]] = []
    for name, places in itertools.groupby(mine, key=lambda place: jobs[place][1].task):
        task: TaskData | None = None
        for place in places:
            suite, run = jobs[place]
            task = task or suite.training(name)
            narrator.say(f"{run} ({len(found) + 1} of {len(mine)} here)")
            scores = _score(suite, run, task, processes.device, narrator)
            write_json(_file(folder, suite, run), scores)
            found.append((place, scores))
    new: dict[int, Scores] = dict(gather_object(found))
    scored = [new.get(place) or read_json(_file(folder, *job)) for place, job in enumerate(jobs)]
    return from_first(scored, processes)


def _file(folder: Path, suite: Suite, run: Run) -> Path:
    """Where a run's scores are kept: scores of other weights, rows or settings are never found there."""
    name = f"{run.task}-{suite.keys[run.task][:8]}"
    point = run.point
    leaf = f"lr{point.learning_rate}-epochs{point.epochs}-batch{point.batch_size}-seed{run.seed}"
    return folder / ("choosing" if run.choosing else "runs") / name / f"{leaf}.json"


def _score(suite: Suite, run: Run, task: TaskData, device: torch.device, narrator: Narrator) -> Scores:
    model = suite.start(task, run.seed)
    shape = Architecture.from_config(model.config)
    train_alone(
        model,
        DistillationCriterion({"task": {}}, shape, shape),
        TrainingSection(**vars(run.point), precision=suite.section.precision),
        task.train if run.choosing else [*task.train, *task.selection],
        DistillationCollator(task.pad_token_id),
        device,
        seed=run.seed,
        narrator=narrator,
        what=run.task,
    )
    splits = {split: each.reporting for split, each in suite.reporting[run.task].items()}
    wanted = {HELD_OUT: task.selection} if run.choosing else splits
    return {split: _scores(model, task, rows) for split, rows in wanted.items()}


def _scores(model: PreTrainedModel, task: TaskData, rows: Sequence[Row]) -> dict[str, float | None]:
    """All metrics; None for each where the model's outputs are not numbers any more."""
    scores = evaluate_model(model, rows, task)
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}
