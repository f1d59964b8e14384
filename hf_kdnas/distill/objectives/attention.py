"""Attention maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.layer_maps import layer_pairs
from hf_kdnas.distill.objectives.base import Batch, Objective, Signals, count_tokens, sum_over_tokens
from hf_kdnas.distill.objectives.scores import row_loss, scaled_scores
from hf_kdnas.errors import InvalidInput

KEY = "objectives.attention.layers"


class Attention(Objective):
    """The attention of mapped layers, computed from captured queries and keys.

    `A = Q K^T / sqrt(d)` per head, without the position bias that MPNet adds to them. As they are, they are
    compared by their mean squared difference (TinyBERT, arXiv 1909.10351, equation 7, which learns faster
    so); behind a softmax by `KL(A_T || A_S)` per query row (MobileBERT, arXiv 2004.02984, section 3.4). Heads
    are compared one by one where teacher and student have as many (a student cut from its teacher keeps their
    order); else their means are, because nothing says which belong together: those of the distributions,
    behind a softmax, not those of the scores, whose softmax neither model computes.

    The value per query row is the mean over heads and over pairs of layers. Units: query rows (tokens).

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher.
        layers: Layer map: `last`, `uniform`, `uniform+last`, `uniform-consecutive` (see `layer_pairs`), or
            pairs [teacher layer, student layer].
        softmax: Compare distributions, not scores.

    Raises:
        InvalidInput: If a layer doesn't exist.
    """

    def __init__(
        self,
        student: Architecture,
        teacher: Architecture,
        *,
        layers: str | Sequence[Sequence[int]] = "uniform",
        softmax: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        self.pairs = [
            pair
            for pair in layer_pairs(layers, teacher.num_hidden_layers, student.num_hidden_layers, KEY)
            # By name a map may hold the embeddings, which attend to nothing.
            if not isinstance(layers, str) or min(pair) > 0
        ]
        for pair in self.pairs:
            if min(pair) < 1:
                raise InvalidInput(
                    KEY,
                    list(pair),
                    "layers count from 1: embeddings attend to nothing",
                    "Name layers that exist, or choose a map by name.",
                )
        self.softmax = softmax
        self.student_signals = _signals(layer for _, layer in self.pairs)
        self.teacher_signals = _signals(layer for layer, _ in self.pairs)

    def count(self, batch: Batch) -> Tensor:
        """Query rows, without padding."""
        return count_tokens(batch)

    def total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Sum over the query rows."""
        mask = batch["attention_mask"].bool()
        rows = []
        for theirs, ours in self.pairs:
            wanted = _scores(teacher, theirs, self.teacher.num_attention_heads)
            learned = _scores(student, ours, self.student.num_attention_heads)
            rows.append(row_loss(learned, wanted, mask, softmax=self.softmax))
        return sum_over_tokens(torch.stack(rows).mean(0), batch)


def _signals(layers: Iterable[int]) -> frozenset[str]:
    return frozenset(f"{part}.{layer}" for layer in layers for part in ("query", "key"))


def _scores(signals: Signals, layer: int, heads: int) -> Tensor:
    return scaled_scores(signals[f"query.{layer}"], signals[f"key.{layer}"], heads)
