"""The outputs of every kind of head as rows of one kind: logits of distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_kdnas.distill.objectives.base import Batch, Head, count_samples, count_tokens
from hf_kdnas.errors import InvalidInput

# Transformers' `problem_type`.
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

# The logit of a position that can't be chosen: its probability is 0, and, unlike -inf, its difference
# from another such logit is 0 as well.
NEVER = -1e9


def output_rows(logits: Tensor, batch: Batch, head: Head | None = None) -> Tensor:
    """A head's outputs as logits of distributions, one a row.

    | task | logits | rows |
    |---|---|---|
    | classification | (batch, labels) | the same |
    | multi-label | (batch, labels) | (batch x labels, 2): a label's logit against 0, its sigmoid |
    | token classification | (batch, length, labels) | (tokens, labels), without padding |
    | question answering | (batch, length, 2) | (2 x batch, length): where it starts, where it ends |

    Args:
        logits: The signal "logits".
        batch: Its labels say which task it is of.
        head: Says it first.

    Raises:
        InvalidInput: If a head reads every token and the batch doesn't say for which task.
    """
    if is_span(batch):
        return span_rows(logits, batch)
    if is_multi_label(batch, head):
        return torch.stack([logits, torch.zeros_like(logits)], dim=-1).flatten(0, -2)
    if logits.dim() == 3:
        if not has_token_labels(batch):
            raise InvalidInput(
                "labels",
                f"a batch with {', '.join(sorted(batch))}",
                "the outputs of each token need token labels, or start and end positions, beside them",
                "Add the columns; -100 is a label that is left out.",
            )
        return logits[batch["attention_mask"].bool()]
    return logits


def count_outputs(batch: Batch, head: Head | None = None) -> int | Tensor:
    """Number of rows that `output_rows` gives for a batch."""
    if is_span(batch):
        return 2 * count_samples(batch)
    if head is not None:
        return count_samples(batch) * (head.num_labels if is_multi_label(batch, head) else 1)
    if is_multi_label(batch):
        return int(batch["labels"].numel())
    return count_tokens(batch) if has_token_labels(batch) else count_samples(batch)


def span_rows(logits: Tensor, batch: Batch) -> Tensor:
    """Logits of all starts, then of all ends, over the real positions: (2 x batch, length)."""
    rows = torch.cat(logits.unbind(-1))
    padding = ~batch["attention_mask"].bool()
    return rows.masked_fill(padding.repeat(2, 1), NEVER)


def is_span(batch: Batch) -> bool:
    """Whether the batch asks for spans."""
    return "start_positions" in batch


def is_regression(logits: Tensor, head: Head | None) -> bool:
    """Whether a text's outputs are scores: as the head says, or a single one."""
    return logits.shape[-1] == 1 if head is None else head.problem == REGRESSION


def is_multi_label(batch: Batch, head: Head | None = None) -> bool:
    """Whether the labels are multi-hot floats, (batch, labels)."""
    if head is not None and head.problem is not None:
        return head.problem == MULTI_LABEL
    labels = batch.get("labels")
    return labels is not None and labels.is_floating_point() and labels.dim() == 2


def has_token_labels(batch: Batch) -> bool:
    """Whether the labels are class ids of tokens, (batch, length)."""
    labels = batch.get("labels")
    return labels is not None and not labels.is_floating_point() and labels.dim() == 2
