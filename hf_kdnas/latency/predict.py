"""A latency predictor: it proposes, it never decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hf_kdnas.architecture import Architecture
    from hf_kdnas.latency.target import LatencyTarget


class LatencyPredictor:
    """Latency as a non-negative sum of operation counts, fitted on measurements.

    The counts, for L layers of hidden size H, heads' width D, A heads, intermediate size F on b rows of
    n tokens: projections L b n H D, scores L b n^2 D, softmax L b n^2 A, feed-forward L b n H F, element-wise
    L b n (H + F), an overhead per layer, and one per run. Errors are weighed relative to the latency; no
    weight is negative, so that a larger shape is never predicted to be faster.

    Args:
        target: Gives rows and tokens.
    """

    def __init__(self, target: LatencyTarget) -> None:
        self._rows = target.batch_size
        self._length = target.sequence_length
        self._weights: NDArray[np.float64] | None = None

    def fit(self, measured: Sequence[tuple[Architecture, float]]) -> LatencyPredictor:
        """Fit on (architecture, milliseconds) pairs.

        Returns:
            Itself.

        Raises:
            ValueError: If there are no pairs.
        """
        if not measured:
            raise ValueError("fit the latency predictor on at least one measurement")
        self._milliseconds = np.array([latency for _, latency in measured])
        self._measured = np.array([self._counts(shape) for shape, _ in measured])
        self._weights = _solve(self._measured, self._milliseconds)
        return self

    def predict(self, architecture: Architecture) -> float:
        """Milliseconds.

        Raises:
            RuntimeError: Before `fit`.
        """
        return float(self._counts(architecture) @ self._fitted())

    @property
    def error(self) -> float:
        """Mean relative error of each measurement as predicted from the others.

        Raises:
            RuntimeError: Before `fit`.
        """
        self._fitted()
        counts, milliseconds = self._measured, self._milliseconds
        every = np.arange(len(milliseconds))
        left_out = [counts[i] @ _solve(counts[every != i], milliseconds[every != i]) for i in every]
        return float(np.mean(np.abs(np.array(left_out) / milliseconds - 1)))

    def _fitted(self) -> NDArray[np.float64]:
        if self._weights is None:
            raise RuntimeError("fit the latency predictor on measurements first")
        return self._weights

    def _counts(self, shape: Architecture) -> NDArray[np.float64]:
        tokens = self._rows * self._length
        hidden, attention, ffn = shape.hidden_size, shape.attention_size, shape.intermediate_size
        per_layer = [
            4 * tokens * hidden * attention / 1e6,
            2 * tokens * self._length * attention / 1e6,
            tokens * self._length * shape.num_attention_heads / 1e6,
            2 * tokens * hidden * ffn / 1e6,
            tokens * (hidden + ffn) / 1e6,
            1.0,
        ]
        return np.array([*(shape.num_hidden_layers * count for count in per_layer), 1.0])


def _solve(counts: NDArray[np.float64], milliseconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Milliseconds per count, none negative, of the least squared relative error."""
    weights: NDArray[np.float64] = nnls(counts / milliseconds[:, None], np.ones(len(milliseconds)))[0]
    return weights
