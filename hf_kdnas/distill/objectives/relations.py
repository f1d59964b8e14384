"""Relations of queries, keys and values (MiniLMv2)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives.base import Batch, Objective, SharedSignals, Signals, count_tokens
from hf_kdnas.distill.objectives.relation_loss import relation_difference, relation_loss, relations
from hf_kdnas.errors import InvalidInput

PARTS = ("query", "key", "value")
LOSSES = ("kl", "mse")

# From this depth on the layer below the last one teaches best (arXiv 2310.08797: the upper-middle
# layers); a shallower teacher has no upper middle.
DEEP = 12


class Relations(Objective):
    """Self-attention relations of one teacher layer, learned by the student's last layer.

    MiniLMv2 (Wang et al., arXiv 2012.15828, section 3): for queries, keys and values X each, all heads
    are concatenated and split again into the same number of relation heads for teacher and student,
    `R = softmax(X X^T / sqrt(d_r))` per relation head. The loss per query row is, mean over the relation
    heads and summed over the three,

    - `kl`: `KL(R_T || R_S)`;
    - `mse`: the mean of `(R_T - R_S)^2` over the row's real keys (AutoDistil, arXiv 2201.12507); without
      the softmax, as in that paper's own code, R are the scaled products themselves.

    Padded keys are masked before the softmax, padded queries leave the sum.

    Units: query rows (tokens).

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher.
        teacher_layer: Layer to learn from, counted from 1; None means the last, or the one below it
            for teachers of 12 layers and more.
        relation_heads: Number of relation heads; None means the largest common divisor of both
            attention widths that is no more than the teacher's heads.
        softmax: Compare distributions, not products.
        loss: `kl` or `mse`; None means `kl`, or `mse` without the softmax.

    Raises:
        InvalidInput: If the layer doesn't exist, the relation heads don't divide both widths, the loss is
            unknown, or it is `kl` without the softmax.
    """

    def __init__(
        self,
        student: Architecture,
        teacher: Architecture,
        *,
        teacher_layer: int | None = None,
        relation_heads: int | None = None,
        softmax: bool = True,
        loss: str | None = None,
    ) -> None:
        super().__init__(student, teacher)
        self.softmax = softmax
        self.loss = ("kl" if softmax else "mse") if loss is None else loss
        self.teacher_layer = upper_layer(teacher) if teacher_layer is None else teacher_layer
        self.relation_heads = _default_heads(student, teacher) if relation_heads is None else relation_heads
        self._check()
        self.student_signals = frozenset(f"{part}.{student.num_hidden_layers}" for part in PARTS)
        self.teacher_signals = frozenset(f"{part}.{self.teacher_layer}" for part in PARTS)

    def _check(self) -> None:
        check_layer("relations", self.teacher_layer, self.teacher)
        if self.loss not in LOSSES:
            raise InvalidInput(
                "objectives.relations.loss",
                self.loss,
                f"losses are {', '.join(LOSSES)}",
                "Choose one of these.",
            )
        if self.loss == "kl" and not self.softmax:
            raise InvalidInput(
                "objectives.relations.loss",
                "kl",
                "with softmax: false there are no distributions to compare, mse alone is possible",
                "Choose mse, or leave softmax out.",
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
        kind, heads = self.loss if self.softmax else "products", self.relation_heads
        losses = []
        for part in PARTS:
            name = f"{part}.{self.teacher_layer}"
            learned, wanted = student[f"{part}.{self.student.num_hidden_layers}"], teacher[name]
            if isinstance(teacher, SharedSignals):
                make = partial(relations, wanted, mask, heads=heads, kind=kind)
                theirs = teacher.made((name, heads, kind), make)
                losses.append(relation_difference(learned, theirs, mask, heads=heads, kind=kind))
            else:
                losses.append(relation_loss(learned, wanted, mask, heads=heads, kind=kind))
        return torch.stack(losses).sum()


def upper_layer(teacher: Architecture) -> int:
    """The teacher layer whose attention is learned from where none is named."""
    depth = teacher.num_hidden_layers
    return depth - 1 if depth >= DEEP else depth


def check_layer(name: str, layer: int, teacher: Architecture) -> None:
    """Refuse a `teacher_layer` that doesn't exist."""
    if not 1 <= layer <= teacher.num_hidden_layers:
        raise InvalidInput(
            f"objectives.{name}.teacher_layer",
            layer,
            f"the teacher has layers 1 to {teacher.num_hidden_layers}",
            "Name a layer that exists.",
        )


def _default_heads(student: Architecture, teacher: Architecture) -> int:
    common = math.gcd(student.attention_size, teacher.attention_size)
    return max(heads for heads in range(1, teacher.num_attention_heads + 1) if common % heads == 0)
