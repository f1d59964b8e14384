"""Sentence embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives.base import Batch, Objective, Signals, count_samples
from hf_kdnas.errors import InvalidInput

LOSSES = ("cosine", "mse")
POOLINGS = ("mean", "cls")


class Sentence(Objective):
    """Distance between the sentence embeddings of student and teacher (arXiv 2004.09813, section 2).

    An embedding is the mean of the last layer's states over the tokens, or the state of the first one.
    A narrower student copies the teacher's vector times a map P (H_T, H_S) with orthonormal columns, which
    keeps cosine similarities nearly as they are. A map learned on the student's side would be thrown away
    after the training, and the similarities with it. Without a `projection` P is drawn (Johnson and
    Lindenstrauss); students as wide as their teacher then need none.

    - `cosine`: 1 - cos(student, teacher P);
    - `mse`: the squared distance over the squared length of teacher P (its length counts as well).

    Units: samples.

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher.
        loss: `cosine` or `mse`.
        pooling: `mean` or `cls`, as the model will be used.
        projection: The fixed map P, or None.

    Raises:
        InvalidInput: If loss or pooling is unknown, or a student without a projection is wider than its
            teacher.
    """

    projection: Tensor | None

    def __init__(
        self,
        student: Architecture,
        teacher: Architecture,
        *,
        loss: str = "cosine",
        pooling: str = "mean",
        projection: Tensor | None = None,
    ) -> None:
        super().__init__(student, teacher)
        for option, given, allowed in (("loss", loss, LOSSES), ("pooling", pooling, POOLINGS)):
            if given not in allowed:
                raise InvalidInput(
                    f"objectives.sentence.{option}",
                    given,
                    f"allowed are {', '.join(allowed)}",
                    "Choose one of these.",
                )
        self.loss = loss
        self.pooling = pooling
        drawn = projection is None and student.hidden_size != teacher.hidden_size
        self.register_buffer(
            "projection", _drawn(student, teacher) if drawn else projection, persistent=drawn
        )
        self.ours, self.theirs = (f"hidden.{shape.num_hidden_layers}" for shape in (student, teacher))
        self.student_signals, self.teacher_signals = frozenset({self.ours}), frozenset({self.theirs})

    def count(self, batch: Batch) -> int:
        """Samples."""
        return count_samples(batch)

    def total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Sum over the samples."""
        ours, theirs = self._pooled(student[self.ours], batch), self._pooled(teacher[self.theirs], batch)
        if self.projection is not None:
            theirs = theirs @ self.projection.to(theirs.dtype)
        if self.loss == "cosine":
            return (1 - functional.cosine_similarity(ours, theirs, dim=-1)).sum()
        return ((ours - theirs).square().sum(-1) / theirs.square().sum(-1)).sum()

    def _pooled(self, states: Tensor, batch: Batch) -> Tensor:
        """Embeddings (batch, hidden) of states (batch, length, hidden), which are 0 in the padding."""
        if self.pooling == "cls":
            return states[:, 0]
        tokens: Tensor = batch["attention_mask"].sum(1, keepdim=True)
        return states.sum(1) / tokens


def _drawn(student: Architecture, teacher: Architecture) -> Tensor:
    if student.hidden_size > teacher.hidden_size:
        raise InvalidInput(
            "objectives.sentence",
            student.key,
            f"embeddings of {teacher.hidden_size} numbers can't be copied by {student.hidden_size}",
            "Choose a student that is no wider than its teacher.",
        )
    columns: Tensor = torch.linalg.qr(torch.randn(teacher.hidden_size, student.hidden_size)).Q
    return columns
