"""The task's own loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives.base import Batch, Objective, Signals
from hf_kdnas.distill.objectives.outputs import (
    REGRESSION,
    count_outputs,
    is_multi_label,
    is_regression,
    is_span,
    span_rows,
)
from hf_kdnas.errors import InvalidInput
from hf_kdnas.labels import IGNORED


class Task(Objective):
    """What the student's own head computes: cross-entropy for classes, mean squared error for scores.

    Multi-hot labels, (batch, labels) of floats, are compared label by label, by binary cross-entropy; those
    of a regression of several outputs are scores, (batch, outputs).

    Spans are compared by the cross-entropy of where they start and of where they end, over the real
    positions, so that a batch's padding plays no part.

    Units: samples (or tokens) with a label; with several labels or scores a row, pairs of sample and
    label; starts and ends.

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher (not used).
    """

    def __init__(self, student: Architecture, teacher: Architecture) -> None:
        super().__init__(student, teacher)
        self.student_signals = frozenset({"logits"})

    def count(self, batch: Batch) -> int | Tensor:
        """Whatever is right or wrong.

        Raises:
            InvalidInput: If the batch has no labels.
        """
        if is_span(batch):
            return count_outputs(batch)
        labels = _labels(batch)
        scores = self.head is not None and self.head.problem == REGRESSION
        return labels.numel() if scores or labels.is_floating_point() else (labels != IGNORED).sum()

    def total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Sum over what has a label."""
        if is_span(batch):
            positions = torch.cat([batch["start_positions"], batch["end_positions"]])
            return functional.cross_entropy(span_rows(student["logits"], batch), positions, reduction="sum")
        labels, logits = _labels(batch), student["logits"]
        if logits.dim() == 2 and is_regression(logits, self.head):
            return (logits.flatten() - labels.flatten().to(logits.dtype)).square().sum()
        if is_multi_label(batch, self.head):
            wanted = labels.to(logits.dtype)
            return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return functional.cross_entropy(
            logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )


def _labels(batch: Batch) -> Tensor:
    if "labels" not in batch:
        raise InvalidInput(
            "objectives",
            "task",
            f"needs labels; the batch has {', '.join(sorted(batch))}",
            "Give the data a label column, or leave the task objective out.",
        )
    labels: Tensor = batch["labels"]
    return labels
