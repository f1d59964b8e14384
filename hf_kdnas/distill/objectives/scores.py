"""Scaled dot products per head, and how those of student and teacher are compared."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# On CPUs a softmax over rows shorter than a vector register (16 floats) goes number by number, and is several
# times as fast over the first dimension, across rows.
SHORT = 16


def scaled_scores(left: Tensor, right: Tensor, heads: int) -> Tensor:
    """`X Y^T / sqrt(d)` per head, (batch, heads, length, length).

    Args:
        left: X, (batch, length, heads x d).
        right: Y, likewise.
        heads: Number of heads that the last dimension is split into.
    """
    split = [each.view(*each.shape[:2], heads, -1).transpose(1, 2) for each in (left, right)]
    return split[0] / math.sqrt(split[0].shape[-1]) @ split[1].mT


def row_loss(learned: Tensor, wanted: Tensor, mask: Tensor, *, softmax: bool) -> Tensor:
    """The loss of each query row, mean over heads, (batch, length).

    Where one has more heads than the other, the means over the heads of each are compared.

    Args:
        learned: The student's scores, (batch, heads, length, length).
        wanted: The teacher's.
        mask: Which keys are no padding, (batch, length).
        softmax: `KL(softmax(wanted) || softmax(learned))` over the real keys of a row; else the mean
            squared difference over them.
    """
    keys = mask[:, None, None, :]
    if softmax:
        p, q = (log_softmax(scores, keys) for scores in (wanted, learned))
        if p.shape[1] != q.shape[1]:
            p, q = (each.logsumexp(1, keepdim=True) - math.log(each.shape[1]) for each in (p, q))
        return functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean(1)
    if learned.shape[1] != wanted.shape[1]:
        learned, wanted = (each.mean(1, keepdim=True) for each in (learned, wanted))
    squared = (learned - wanted).square().masked_fill(~keys, 0)
    return (squared.sum(-1) / mask.sum(-1).clamp_min(1)[:, None, None]).mean(1)


def log_softmax(scores: Tensor, keys: Tensor) -> Tensor:
    """Logarithm of the softmax over the last dimension, of the keys that are no padding.

    Args:
        scores: (batch, heads, length, length).
        keys: True where a key is no padding, (batch, 1, 1, length).
    """
    return _over_keys(functional.log_softmax, scores, keys)


def softmax(scores: Tensor, keys: Tensor) -> Tensor:
    """The same without the logarithm."""
    return _over_keys(functional.softmax, scores, keys)


def _over_keys(normalise: Callable[..., Tensor], scores: Tensor, keys: Tensor) -> Tensor:
    # Added, not filled in: several times as fast on CPUs.
    scores = scores + torch.zeros_like(keys, dtype=scores.dtype).masked_fill(
        ~keys, torch.finfo(scores.dtype).min
    )
    if scores.shape[-1] < SHORT:
        return normalise(scores.movedim(-1, 0), dim=0).movedim(0, -1)
    return normalise(scores, dim=-1)
