"""Output distribution."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives.base import Batch, Objective, Signals
from hf_kdnas.distill.objectives.outputs import count_outputs, output_rows
from hf_kdnas.errors import InvalidInput


class Logits(Objective):
    """Kullback-Leibler divergence of the student's output distribution from the teacher's.

    `T^2 * KL(softmax(teacher / T) || softmax(student / T))` per distribution (Hinton et al., arXiv
    1503.02531, section 2; T^2 keeps the gradient's size). A single logit (regression) has no
    distribution: there it is the squared difference, and the temperature plays no part.

    Units: distributions, of which `output_rows` says how many a sample has.

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

    def count(self, batch: Batch) -> int | Tensor:
        """Distributions."""
        return count_outputs(batch)

    def total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Sum over the distributions."""
        if student["logits"].shape[-1] == 1:
            return (student["logits"] - teacher["logits"]).square().sum()
        learned, target = (output_rows(each["logits"], batch) for each in (student, teacher))
        predicted = functional.log_softmax(learned / self.temperature, dim=-1)
        wanted = functional.log_softmax(target / self.temperature, dim=-1)
        divergence = functional.kl_div(predicted, wanted, reduction="sum", log_target=True)
        return self.temperature**2 * divergence
