"""The output distribution of a masked-LM head."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives.base import Batch, Objective, Signals, at_least_fp32, count_tokens
from hf_kdnas.errors import InvalidInput
from hf_kdnas.labels import IGNORED

POSITIONS = ("masked", "all")


class MaskedLM(Objective):
    """KL divergence of the student's distribution over the vocabulary from the teacher's, times T^2.

    `masked` looks at the hidden tokens, as masked language modelling does (DistilBERT, arXiv 1910.01108,
    section 2); `all` at every token (OD of arXiv 2310.08797).

    Units: hidden tokens, or tokens.

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher.
        positions: `masked` or `all`.
        temperature: What logits are divided by, T, above 0.

    Raises:
        InvalidInput: If the positions are unknown or the temperature is not positive.
    """

    selects = True  # a vocabulary is wide

    def __init__(
        self,
        student: Architecture,
        teacher: Architecture,
        *,
        positions: str = "masked",
        temperature: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        if positions not in POSITIONS:
            raise InvalidInput(
                "objectives.mlm.positions", positions, f"are {', '.join(POSITIONS)}", "Choose one of these."
            )
        if not temperature > 0:
            raise InvalidInput("objectives.mlm.temperature", temperature, "must be above 0", "Try 1.0.")
        self.positions = positions
        self.temperature = temperature
        self.student_signals = self.teacher_signals = frozenset({"logits"})

    def count(self, batch: Batch) -> int | Tensor:
        """Hidden tokens, or tokens.

        Raises:
            InvalidInput: If no tokens are hidden in the batch.
        """
        return count_tokens(batch) if self.positions == "all" else _hidden(batch).sum()

    def total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Sum over them."""
        where = batch["attention_mask"].bool() if self.positions == "all" else _hidden(batch)
        log_q, log_p = (
            functional.log_softmax(at_least_fp32(signals["logits"][where]) / self.temperature, dim=-1)
            for signals in (student, teacher)
        )
        return self.temperature**2 * functional.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _hidden(batch: Batch) -> Tensor:
    labels = batch.get("labels")
    if labels is None or labels.shape != batch["attention_mask"].shape:
        given = ", ".join(sorted(batch)) if labels is None else f"labels of shape {tuple(labels.shape)}"
        raise InvalidInput(
            "objectives",
            "mlm",
            f"needs hidden tokens, labelled one by one; the batch has {given}",
            "Set data.task: fill-mask, or give the trainer a masking and rows without labels.",
        )
    hidden: Tensor = labels != IGNORED
    return hidden
