"""The output distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives.base import Batch, Objective, Signals
from hf_kdnas.distill.objectives.outputs import (
    NEVER,
    count_outputs,
    is_multi_label,
    is_regression,
    output_rows,
)
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

    Scores (a single logit, or those of a regression) have no distribution: there it is the mean squared
    difference.

    Units: distributions, of which `output_rows` says how many a sample has.

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher.
        loss: `kl`, `reverse_kl`, `js` or `mse`.
        temperature: What logits are divided by, T, above 0.

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

    def count(self, batch: Batch) -> int | Tensor:
        """Distributions."""
        return count_outputs(batch, self.head)

    def total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Sum over the distributions."""
        ours, theirs = student["logits"], teacher["logits"]
        if is_regression(ours, self.head):
            return (ours - theirs).square().mean(-1).sum()
        if self.loss == "mse" and is_multi_label(batch, self.head):
            return (ours - theirs).square().sum()
        learned, wanted = (output_rows(logits, batch, self.head) for logits in (ours, theirs))
        if self.loss == "mse":
            return _squared_difference(learned, wanted)
        log_q, log_p = (functional.log_softmax(rows / self.temperature, dim=-1) for rows in (learned, wanted))
        return self.temperature**2 * DIVERGENCES[self.loss](log_p, log_q)


def _squared_difference(learned: Tensor, wanted: Tensor) -> Tensor:
    """Mean over what can be chosen in a row, summed over all rows."""
    possible = wanted > NEVER
    squared = (learned - wanted).square().masked_fill(~possible, 0)
    return (squared.sum(-1) / possible.sum(-1)).sum()


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
