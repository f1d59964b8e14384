"""Output distribution."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives.base import Batch, Objective, Signals, count_samples
from hf_kdnas.errors import InvalidInput


class Logits(Objective):
    """Kullback-Leibler divergence of the student's output distribution from the teacher's.

    `T^2 * KL(softmax(teacher / T) || softmax(student / T))` per sample (Hinton et al., arXiv
    1503.02531, section 2; T^2 keeps the gradient's size). A single logit (regression) has no
    distribution: there it is the squared difference, and the temperature plays no part.

    Units: samples.

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher.
        temperature: T, above 0.

    Raises:
        InvalidInput: If the temperature is not positive.
    """

    def __init__(self, student: Architecture, teacher: Architecture, *, temperature: float = 2.0) -> None:
        super().__init__(student, teacher)
        if not temperature > 0:
            raise InvalidInput("objectives.logits.temperature", temperature, "must be above 0", "Try 2.0.")
        self.temperature = temperature
        self.student_signals = self.teacher_signals = frozenset({"logits"})

    def count(self, batch: Batch) -> int:
        """Samples."""
        return count_samples(batch)

    def total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Sum over the samples."""
        if student["logits"].shape[-1] == 1:
            return (student["logits"] - teacher["logits"]).square().sum()
        predicted = functional.log_softmax(student["logits"] / self.temperature, dim=-1)
        wanted = functional.log_softmax(teacher["logits"] / self.temperature, dim=-1)
        divergence = functional.kl_div(predicted, wanted, reduction="sum", log_target=True)
        return self.temperature**2 * divergence
