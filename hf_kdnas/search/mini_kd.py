"""Mini-KD: short distillations on a proxy set, which tell how good a candidate can become."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import get_linear_schedule_with_warmup

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.data import DistillationCollator, LengthGroupedSampler, spread_rows
from hf_kdnas.precision import autocast, teacher_precision
from hf_kdnas.slicing import move_to

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_kdnas.distill.objectives import Signals
    from hf_kdnas.initialisation import Initialiser
    from hf_kdnas.recipe import TrainingSection
    from hf_kdnas.tasks import Row


def proxy_rows(rows: Sequence[Row], fraction: float, seed: int) -> list[Row]:
    """The part of the training rows that candidates learn from: drawn once, the same for all."""
    count = max(1, round(fraction * len(rows)))
    chosen = random.Random(seed).sample(range(len(rows)), count)
    return [rows[index] for index in sorted(chosen)]


@dataclass(frozen=True)
class MiniKD:
    """Distils candidates one after another, by a plain loop over the shared criterion.

    Attributes:
        initialiser: Makes the students; its teacher runs live where `collator` has no signals.
        rows: The proxy set.
        collator: Makes batches, with the teacher's signals where they are cached.
        objectives: As in the recipe.
        section: How long and how fast to train.
        seed: Decides drawn weights, dropout and the order of the rows, the same for all candidates.
        score: Quality of a student on the selection split.
        device: Where to train.
        teacher_dtype: What a live teacher computes in.
    """

    initialiser: Initialiser
    rows: Sequence[Row]
    collator: DistillationCollator
    objectives: dict[str, dict[str, Any]]
    section: TrainingSection
    seed: int
    score: Callable[[PreTrainedModel], float]
    device: torch.device
    teacher_dtype: str = "auto"

    def run(self, candidates: Sequence[Architecture]) -> Iterator[tuple[Architecture, float]]:
        """Distil the candidates of an episode, and give each one's quality as soon as it is known."""
        for architecture in candidates:
            yield architecture, self.score(self._distil(architecture))

    def _distil(self, architecture: Architecture) -> PreTrainedModel:
        student = self.initialiser.student(architecture, self.seed)
        move_to(student, self.device)
        criterion = DistillationCriterion(
            self.objectives,
            architecture,
            Architecture.from_config(self.initialiser.teacher.config),
            projection=self.initialiser.projection(architecture),
            seed=self.seed,
        ).to(self.device)
        parameters = [*student.parameters(), *criterion.parameters()]
        optimiser = torch.optim.AdamW(
            parameters, lr=self.section.learning_rate, weight_decay=self.section.weight_decay, fused=True
        )
        steps = self._steps()
        warmup = math.ceil(self.section.warmup_fraction * steps)
        schedule = get_linear_schedule_with_warmup(optimiser, warmup, steps)
        read = self._reader(student, criterion)
        sample = self._to_device(self.collator(spread_rows(self.rows)))
        student.eval()
        with torch.no_grad():
            criterion.calibrate(*read(sample), sample)
        student.train()
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for step, micro_batches in enumerate(itertools.islice(self._micro_batches(), steps)):
                criterion.progress = step / steps
                counts = _joined(criterion.counts(batch) for batch in micro_batches)
                for batch in micro_batches:
                    loss, _ = criterion(*read(batch), batch, counts)
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, self.section.max_grad_norm)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
        return student

    def _reader(
        self, student: PreTrainedModel, criterion: DistillationCriterion
    ) -> Callable[[dict[str, Any]], tuple[Signals, Signals]]:
        """A function that gives the signals of student and teacher on a batch."""
        teacher = self.initialiser.teacher
        captured = Capture(student, criterion.student_signals)
        wanted = Capture(teacher, criterion.teacher_signals)

        def read(batch: dict[str, Any]) -> tuple[Signals, Signals]:
            with autocast(self.device, self.section.precision):
                signals = forward_signals(student, captured, batch)
            with autocast(self.device, teacher_precision(self.teacher_dtype, self.section.precision)):
                return signals, batch.get("teacher") or _without_gradient(teacher, wanted, batch)

        return read

    def _steps(self) -> int:
        accumulate = self.section.gradient_accumulation_steps
        batches = math.ceil(len(self.rows) / self.section.batch_size)
        return max(1, math.ceil(self.section.epochs * batches / accumulate))

    def _micro_batches(self) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of one step after another, without end."""
        batches = self._batches()
        while True:
            step = itertools.islice(batches, self.section.gradient_accumulation_steps)
            yield [self._to_device(batch) for batch in step]

    def _batches(self) -> Iterator[dict[str, Any]]:
        """Batches of one epoch after another, without end."""
        lengths = [len(row["input_ids"]) for row in self.rows]
        sampler = LengthGroupedSampler(lengths, self.section.batch_size, self.seed)
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            for indices in sampler.batches():
                yield self.collator([self.rows[index] for index in indices])

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {
            name: self._to_device(value) if isinstance(value, dict) else value.to(self.device)
            for name, value in batch.items()
        }


@torch.no_grad()
def _without_gradient(teacher: PreTrainedModel, capture: Capture, batch: dict[str, Any]) -> dict[str, Tensor]:
    return forward_signals(teacher, capture, batch)


def _joined(counts: Iterator[Any]) -> dict[str, Any]:
    """Units of each objective over all micro-batches of a step."""
    total: dict[str, Any] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return total
