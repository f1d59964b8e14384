"""Mini-KD: short distillations on a proxy set, which tell how good a candidate can become."""

from __future__ import annotations

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
from hf_kdnas.distill.data import DistillationCollator, LengthGroupedSampler
from hf_kdnas.precision import autocast

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

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
    """

    initialiser: Initialiser
    rows: Sequence[Row]
    collator: DistillationCollator
    objectives: dict[str, dict[str, Any]]
    section: TrainingSection
    seed: int
    score: Callable[[PreTrainedModel], float]
    device: torch.device

    def run(self, candidates: Sequence[Architecture]) -> Iterator[tuple[Architecture, float]]:
        """Distil the candidates of an episode, and give each one's quality as soon as it is known."""
        for architecture in candidates:
            yield architecture, self.score(self._distil(architecture))

    def _distil(self, architecture: Architecture) -> PreTrainedModel:
        teacher = self.initialiser.teacher
        student = self.initialiser.student(architecture, self.seed).to(self.device)
        criterion = DistillationCriterion(
            self.objectives,
            architecture,
            Architecture.from_config(teacher.config),
            projection=self.initialiser.projection(architecture),
        ).to(self.device)
        sampler = LengthGroupedSampler(
            [len(row["input_ids"]) for row in self.rows], self.section.batch_size, self.seed
        )
        parameters = [*student.parameters(), *criterion.parameters()]
        optimiser = torch.optim.AdamW(
            parameters, lr=self.section.learning_rate, weight_decay=self.section.weight_decay, fused=True
        )
        accumulate = self.section.gradient_accumulation_steps
        steps = self._steps(accumulate)
        schedule = get_linear_schedule_with_warmup(
            optimiser, math.ceil(self.section.warmup_fraction * steps), steps
        )
        student_capture = Capture(student, criterion.student_signals)
        teacher_capture = Capture(teacher, criterion.teacher_signals)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            batches = self._batches(sampler)
            for _ in range(steps):
                micro_batches = [self._to_device(next(batches)) for _ in range(accumulate)]
                counts = _joined(criterion.counts(batch) for batch in micro_batches)
                for batch in micro_batches:
                    with autocast(self.device, self.section.precision):
                        signals = forward_signals(student, student_capture, batch)
                        target = batch.get("teacher")
                        if target is None:
                            target = _without_gradient(teacher, teacher_capture, batch)
                    loss, _ = criterion(signals, target, batch, counts)
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, self.section.max_grad_norm)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
        return student

    def _steps(self, accumulate: int) -> int:
        batches = math.ceil(len(self.rows) / self.section.batch_size)
        return max(1, math.ceil(self.section.epochs * batches / accumulate))

    def _batches(self, sampler: LengthGroupedSampler) -> Iterator[dict[str, Any]]:
        """Batches of one epoch after another, without end."""
        epoch = 0
        while True:
            sampler.set_epoch(epoch)
            for indices in sampler.batches():
                yield self.collator([self.rows[index] for index in indices])
            epoch += 1

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {
            name: self._to_device(value) if isinstance(value, dict) else value.to(self.device)
            for name, value in batch.items()
        }


@torch.no_grad()
def _without_gradient(
    teacher: PreTrainedModel, capture: Capture, batch: dict[str, Any]
) -> dict[str, Tensor]:
    return forward_signals(teacher, capture, batch)


def _joined(counts: Iterator[Any]) -> dict[str, Any]:
    """Units of each objective over all micro-batches of a step."""
    total: dict[str, Any] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return total
