"""Relations of queries, keys and values (MiniLMv2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives.base import Batch, Objective, Signals, count_tokens, sum_over_tokens
from hf_kdnas.errors import InvalidInput

PARTS = ("query", "key", "value")

# From this depth on the layer below the last one teaches best (arXiv 2310.08797: the upper-middle
# layers); a shallower teacher has no upper middle.
DEEP = 12


class Relations(Objective):
    """Self-attention relations of one teacher layer, learned by the student's last layer.

    MiniLMv2 (Wang et al., arXiv 2012.15828, section 3): for queries, keys and values X each, all heads
    are concatenated and split again into the same number of relation heads for teacher and student,
    `R = softmax(X X^T / sqrt(d_r))` per relation head, and the loss per query row is `KL(R_T || R_S)`,
    mean over the relation heads, summed over the three. Padded keys are masked before the softmax,
    padded queries leave the sum.

    Units: query rows (tokens).

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher.
        teacher_layer: Layer to learn from, counted from 1; None means the last, or the one below it
            for teachers of 12 layers and more.
        relation_heads: Number of relation heads; None means the largest common divisor of both
            attention widths that is no more than the teacher's heads.

    Raises:
        InvalidInput: If the layer doesn't exist or the relation heads don't divide both widths.
    """

    def __init__(
        self,
        student: Architecture,
        teacher: Architecture,
        *,
        teacher_layer: int | None = None,
        relation_heads: int | None = None,
    ) -> None:
        super().__init__(student, teacher)
        self.teacher_layer = _default_layer(teacher) if teacher_layer is None else teacher_layer
        self.relation_heads = _default_heads(student, teacher) if relation_heads is None else relation_heads
        self._check()
        self.student_signals = frozenset(f"{part}.{student.num_hidden_layers}" for part in PARTS)
        self.teacher_signals = frozenset(f"{part}.{self.teacher_layer}" for part in PARTS)

    def _check(self) -> None:
        if not 1 <= self.teacher_layer <= self.teacher.num_hidden_layers:
            raise InvalidInput(
                "objectives.relations.teacher_layer",
                self.teacher_layer,
                f"the teacher has layers 1 to {self.teacher.num_hidden_layers}",
                "Name a layer that exists.",
            )
        common = math.gcd(self.student.attention_size, self.teacher.attention_size)
        if self.relation_heads < 1 or common % self.relation_heads:
            raise InvalidInput(
                "objectives.relations.relation_heads",
                self.relation_heads,
                f"must divide both attention widths, {self.teacher.attention_size} of the teacher and "
                f"{self.student.attention_size} of the student",
                f"Choose a divisor of {common}, or leave it out.",
            )

    def count(self, batch: Batch) -> Tensor:
        """Query rows, without padding."""
        return count_tokens(batch)

    def total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Sum over the query rows."""
        mask = batch["attention_mask"].bool()
        rows = []
        for part in PARTS:
            learned = self._relation(student[f"{part}.{self.student.num_hidden_layers}"], mask)
            wanted = self._relation(teacher[f"{part}.{self.teacher_layer}"], mask)
            divergence = functional.kl_div(learned, wanted, reduction="none", log_target=True)
            rows.append(divergence.sum(-1).mean(1))
        return sum_over_tokens(torch.stack(rows).sum(0), batch)

    def _relation(self, states: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities log R, (batch, relation heads, length, length), of states X."""
        heads = states.view(*states.shape[:2], self.relation_heads, -1).transpose(1, 2)
        scores = heads @ heads.mT / math.sqrt(heads.shape[-1])
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        return functional.log_softmax(scores, dim=-1)


def _default_layer(teacher: Architecture) -> int:
    depth = teacher.num_hidden_layers
    return depth - 1 if depth >= DEEP else depth


def _default_heads(student: Architecture, teacher: Architecture) -> int:
    common = math.gcd(student.attention_size, teacher.attention_size)
    return max(heads for heads in range(1, teacher.num_attention_heads + 1) if common % heads == 0)
