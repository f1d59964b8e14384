"""Mini-KD: short distillations on a proxy set, which tell how good a candidate can become."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.checks import text_head
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.data import DistillationCollator
from hf_kdnas.distill.loop import train_alone
from hf_kdnas.progress import Narrator

if TYPE_CHECKING:
    import torch
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
        score: The task's metric of a student on the selection split.
        device: Where to train.
        quality: What a candidate is worth: its `metric`, or by its `hidden_states` 1 - L_HS, L_HS being the
            mean hidden-state loss of its last epoch (KD-NAS without a task).
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
    quality: str = "metric"
    teacher_dtype: str = "auto"

    def reached(self, architecture: Architecture) -> float:
        """Distil a candidate, and give its quality."""
        student, losses = self._distil(architecture)
        return 1 - losses["hidden"] if self.quality == "hidden_states" else self.score(student)

    def _distil(self, architecture: Architecture) -> tuple[PreTrainedModel, dict[str, float]]:
        teacher = self.initialiser.teacher
        student = self.initialiser.student(architecture, self.seed)
        criterion = DistillationCriterion(
            self.objectives,
            architecture,
            Architecture.from_config(teacher.config),
            projection=self.initialiser.projection(architecture),
            head=text_head(student),
            seed=self.seed,
        )
        losses = train_alone(
            student,
            criterion,
            self.section,
            self.rows,
            self.collator,
            self.device,
            teacher=teacher,
            teacher_dtype=self.teacher_dtype,
            seed=self.seed,
            narrator=Narrator(speaks=False),
            what=architecture.key,
        )
        return student, losses
