"""Queries, keys and values themselves (DirectMiniLM)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives.base import Batch, Objective, Signals, count_tokens, sum_over_tokens
from hf_kdnas.distill.objectives.relations import PARTS, check_layer, upper_layer
from hf_kdnas.importance import UnitGroup


class DirectRelations(Objective):
    """Mean squared error between mapped queries, keys and values of the student and the teacher's own.

    DirectMiniLM (arXiv 2310.08797): what MiniLMv2 relates is compared directly, the student's last layer
    with one layer of the teacher, through one learned linear map for each of the three. The value per
    token is a mean over features, summed over the three. Units: tokens.

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher.
        teacher_layer: Layer to learn from, counted from 1; None means the last, or the one below it
            for teachers of 12 layers and more.

    Raises:
        InvalidInput: If the layer doesn't exist.
    """

    def __init__(
        self, student: Architecture, teacher: Architecture, *, teacher_layer: int | None = None
    ) -> None:
        super().__init__(student, teacher)
        self.teacher_layer = upper_layer(teacher) if teacher_layer is None else teacher_layer
        check_layer("direct_relations", self.teacher_layer, teacher)
        self.student_signals = frozenset(f"{part}.{student.num_hidden_layers}" for part in PARTS)
        self.teacher_signals = frozenset(f"{part}.{self.teacher_layer}" for part in PARTS)
        self.maps = nn.ModuleDict(
            {part: nn.Linear(student.attention_size, teacher.attention_size) for part in PARTS}
        )

    @torch.no_grad()
    def begin_as_copy(self) -> None:
        """Set each map to the identity."""
        for learned in self.maps.values():
            nn.init.eye_(cast("Tensor", learned.weight))
            nn.init.zeros_(cast("Tensor", learned.bias))

    def student_units(self, name: str) -> tuple[UnitGroup | None, ...]:
        """Maps read the units of the last layer's heads."""
        return (None, ("heads", self.student.num_hidden_layers)) if name.endswith(".weight") else ()

    def reads_queries(self, name: str) -> bool:
        """The first map does."""
        return name == "maps.query.weight"

    def count(self, batch: Batch) -> Tensor:
        """Tokens."""
        return count_tokens(batch)

    def total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Sum over the tokens."""
        errors = []
        for part in PARTS:
            mapped = self.mapped(self.maps[part], student[f"{part}.{self.student.num_hidden_layers}"])
            errors.append((mapped - teacher[f"{part}.{self.teacher_layer}"]).square().mean(-1))
        return sum_over_tokens(torch.stack(errors).sum(0), batch)
