"""The outputs of every kind of head as rows of one kind: logits of distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_kdnas.distill.objectives.base import Batch, count_samples


def output_rows(logits: Tensor, batch: Batch) -> Tensor:
    """A head's outputs as logits of distributions, one a row.

    | task | logits | rows |
    |---|---|---|
    | classification | (batch, labels) | the same |
    | multi-label | (batch, labels) | (batch x labels, 2): a label's logit against 0, its sigmoid |

    Args:
        logits: The signal "logits".
        batch: Its labels say which task it is of.
    """
    if is_multi_label(batch):
        return torch.stack([logits, torch.zeros_like(logits)], dim=-1).flatten(0, -2)
    return logits


def count_outputs(batch: Batch) -> int | Tensor:
    """Number of rows that `output_rows` gives for a batch."""
    if is_multi_label(batch):
        return int(batch["labels"].numel())
    return count_samples(batch)


def is_multi_label(batch: Batch) -> bool:
    """Whether the labels are multi-hot floats, (batch, labels)."""
    labels = batch.get("labels")
    return labels is not None and labels.is_floating_point() and labels.dim() == 2
