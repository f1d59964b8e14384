"""Spearman correlation, as a module for `evaluate.load`, without the network."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
from scipy.stats import spearmanr

from hf_kdnas.metrics.base import OfflineMetric, require_scores

_DESCRIPTION = "Rank correlation of predicted and true scores, from -1 to 1."


class Spearman(OfflineMetric):
    """Spearman correlation."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references: one score per row",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _check(self, predictions: Sequence[float], references: Sequence[float]) -> None:
        require_scores("predictions", predictions)
        require_scores("references", references)

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        if len(set(predictions)) < 2 or len(set(references)) < 2:
            return {"spearman": 0.0}  # not defined for a constant; a model that says nothing scores 0
        return {"spearman": float(spearmanr(references, predictions).statistic)}
