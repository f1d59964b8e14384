"""The output distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives.base import Batch, Objective, Signals, count_samples
from hf_kdnas.errors import InvalidInput


class Logits(Objective):
    """Divergence of the student's output distribution from the teacher's, per sample.

    With `p = softmax(teacher / T)` and `q = softmax(student / T)` (Hinton et al., arXiv 1503.02531,
    section 2; T^2 keeps the gradient's size):

    - `kl`: `T^2 * KL(p || q)`;
    - `reverse_kl`: `T^2 * KL(q || p)`, which seeks the teacher's modes (MiniLLM, arXiv 2306.08543);
    - `js`: `T^2 * (KL(p || m) + KL(q || m)) / 2`, m being the mean of both;
    - `mse`: the mean squared difference of the logits themselves (Ba and Caruana, arXiv 1312.6184);
      the temperature plays no part.

    A single logit (regression) has no distribution: there it is the squared difference.

    Units: samples.

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher.
        loss: One of these names.
        temperature: T, above 0.

    Raises:
        InvalidInput: If the loss is unknown or the temperature is not positive.
    """

    def __init__(
        self, student: Architecture, teacher: Architecture, *, loss: str = "kl", temperature: float = 2.0
    ) -> None:
        super().__init__(student, teacher)
        if loss not in DIVERGENCES and loss != "mse":
            raise InvalidInput(
                "objectives.logits.loss",
                loss,
                f"losses are {', '.join(DIVERGENCES)}, mse",
                "Choose one of these.",
            )
        if not temperature > 0:
            raise InvalidInput("objectives.logits.temperature", temperature, "must be above 0", "Try 2.0.")
        self.loss = loss
        self.temperature = temperature
        self.student_signals = self.teacher_signals = frozenset({"logits"})

    def count(self, batch: Batch) -> int:
        """Samples."""
        return count_samples(batch)

    def total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Sum over the samples."""
        ours, theirs = student["logits"], teacher["logits"]
        if self.loss == "mse" or ours.shape[-1] == 1:
            return (ours - theirs).square().mean(-1).sum()
        learned = functional.log_softmax(ours / self.temperature, dim=-1)
        wanted = functional.log_softmax(theirs / self.temperature, dim=-1)
        return self.temperature**2 * DIVERGENCES[self.loss](wanted, learned)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities, summed over all rows."""
    return functional.kl_div(q, p, reduction="sum", log_target=True)


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    middle = torch.stack([p, q]).logsumexp(0) - math.log(2)
    return (_kl(p, middle) + _kl(q, middle)) / 2


# Of the teacher's log-probabilities p and the student's q.
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": _kl,
    "reverse_kl": lambda p, q: _kl(q, p),
    "js": _jensen_shannon,
}
