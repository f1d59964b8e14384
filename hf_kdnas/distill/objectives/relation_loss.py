"""The loss between relations of two models and its gradient, in one pass over the texts.

A relation is as large as all attention maps of a layer. Written with ordinary operations, many tensors of
that size go to memory and back, which takes longer than the student's own forward. Here a few texts at a
time go all the way from states to the gradient of the states; what lies between stays in the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_kdnas.distill.objectives.scores import log_softmax, scaled_scores, softmax

# Numbers of a relation that are worked on at once: 1 MB on a CPU; a GPU wants to be filled.
CHUNK = {"cpu": 2**18}
LARGE_CHUNK = 2**26


def relation_loss(learned: Tensor, wanted: Tensor, mask: Tensor, *, heads: int, kind: str) -> Tensor:
    """Sum over query rows of the mean over relation heads of a row's loss, a scalar.

    With `S = X X^T / sqrt(d)` per relation head and `R = softmax(S)` over the real keys, a row's loss is
    `KL(R_T || R_S)` for `kl`, the mean over the real keys of `(R_S - R_T)^2` for `mse`, and that of
    `(S_S - S_T)^2` for `products`.

    Args:
        learned: The student's states X, (batch, length, width).
        wanted: The teacher's, (batch, length, another width).
        mask: Which tokens are no padding, (batch, length): others are neither keys nor queries.
        heads: Number of relation heads, a divisor of both widths.
        kind: `kl`, `mse` or `products`.
    """
    total: Tensor = _RelationLoss.apply(learned, wanted, mask, heads, kind)
    return total


def relations(states: Tensor, mask: Tensor, *, heads: int, kind: str) -> list[tuple[Tensor, ...]]:
    """What `relation_difference` compares with, which depends on the teacher alone.

    Args:
        states: The teacher's states X, (batch, length, width), zero where there is padding.
        mask: Which tokens are no padding, (batch, length).
        heads: Number of relation heads.
        kind: `kl`, `mse` or `products`.

    Returns:
        For some texts at a time R, the logarithm of R and R itself (`kl`), or S (`products`).
    """
    found = (_relation(states[chunk], mask[chunk], heads, kind) for chunk in _chunks(mask, heads))
    return [(each, each.exp()) if kind == "kl" else (each,) for each in found]


def relation_difference(
    learned: Tensor, wanted: Sequence[tuple[Tensor, ...]], mask: Tensor, *, heads: int, kind: str
) -> Tensor:
    """The value of `relation_loss` without its gradient, for one of many students of a teacher: a scalar.

    Args:
        learned: The student's states X, (batch, length, width), zero where there is padding.
        wanted: Of the teacher's, `relations`.
        mask: Which tokens are no padding, (batch, length).
        heads: Number of relation heads.
        kind: `kl`, `mse` or `products`.
    """
    total = learned.new_zeros(())
    for chunk, theirs in zip(_chunks(mask, heads), wanted, strict=True):
        keys = mask[chunk]
        ours = _relation(learned[chunk], keys, heads, kind)
        target, *weight = (each.to(ours.dtype) for each in theirs)
        if kind == "kl":
            rows = torch.linalg.vecdot(weight[0], target - ours)
        else:
            rows = torch.linalg.vector_norm(ours.sub_(target), dim=-1).square_()
            rows /= keys.sum(-1).clamp_min(1)[:, None, None]
        total += (rows * keys[:, None]).sum()
    return total / heads


def _relation(states: Tensor, mask: Tensor, heads: int, kind: str) -> Tensor:
    """What the relations of two models are compared by: R, its logarithm, or S, which padding leaves zero."""
    scores = scaled_scores(states, states, heads)
    if kind == "products":
        return scores
    return (log_softmax if kind == "kl" else softmax)(scores, mask[:, None, None, :])


def _chunks(mask: Tensor, heads: int) -> Iterator[slice]:
    """Texts that are worked on at once."""
    texts, length = mask.shape
    size = max(1, CHUNK.get(mask.device.type, LARGE_CHUNK) // (heads * length * length))
    return (slice(start, start + size) for start in range(0, texts, size))


class _RelationLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, learned: Tensor, wanted: Tensor, mask: Tensor, heads: int, kind: str) -> Tensor:
        total, gradients = learned.new_zeros(()), []
        loss_of = _divergence if kind == "kl" else _softmaxed_error if kind == "mse" else _error
        for chunk in _chunks(mask, heads):
            states = (each[chunk].to(learned.dtype) for each in (learned, wanted))
            scores, targets = (scaled_scores(each, each, heads) for each in states)
            loss, by_scores = loss_of(scores, targets, mask[chunk])
            total += loss
            if ctx.needs_input_grad[0]:
                gradients.append(_by_states(by_scores(), learned[chunk]))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients) / heads)
        return total / heads

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None, None


def _divergence(scores: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """KL divergence, summed over rows and heads, and what gives its gradient by the scores."""
    keys, rows = mask[:, None, None, :], mask[:, None, :, None]
    log_relation, log_target = log_softmax(scores, keys), log_softmax(targets, keys)
    target = log_target.exp()
    loss = (target * log_target.sub_(log_relation)).mul_(rows).sum()
    return loss, lambda: log_relation.exp_().sub_(target).mul_(rows)


def _softmaxed_error(scores: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """The same of the squared error behind the softmax."""
    keys = mask[:, None, None, :]
    relation = softmax(scores, keys)
    error = softmax(targets, keys).sub_(relation)
    weighted = error * _mean_over_keys(mask, error)

    def by_scores() -> Tensor:
        by_relation = weighted.mul_(relation).mul_(-2)
        return by_relation.sub_(relation * by_relation.sum(-1, keepdim=True))

    return (error * weighted).sum(), by_scores


def _error(scores: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """The same of the squared error of the products themselves."""
    error = scores.sub_(targets).masked_fill_(~mask[:, None, None, :], 0)
    weighted = error * _mean_over_keys(mask, error)
    return (error * weighted).sum(), lambda: weighted.mul_(2)


def _mean_over_keys(mask: Tensor, like: Tensor) -> Tensor:
    """What a key counts for in each query row's mean: nothing in rows that are padding."""
    counts = mask.sum(-1).clamp_min(1)[:, None, None, None]
    return mask[:, None, :, None].to(like.dtype) / counts


def _by_states(by_scores: Tensor, states: Tensor) -> Tensor:
    """The gradient of states X, given that of `X X^T / sqrt(d)` per head."""
    heads = by_scores.shape[1]
    split = states.view(*states.shape[:2], heads, -1).transpose(1, 2)
    gradient = (by_scores + by_scores.mT) @ split / split.shape[-1] ** 0.5
    joined: Tensor = gradient.transpose(1, 2).reshape(states.shape)
    return joined
