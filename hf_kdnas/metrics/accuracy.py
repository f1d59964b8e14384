"""Accuracy, as a module for `evaluate.load`, without the network."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
from sklearn.metrics import accuracy_score

from hf_kdnas.metrics.base import OfflineMetric, require_class_ids

_DESCRIPTION = "Part of the rows whose class is right."


class Accuracy(OfflineMetric):
    """Accuracy."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references: one class id per row",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _check(self, predictions: Sequence[int], references: Sequence[int]) -> None:
        require_class_ids("predictions", predictions)
        require_class_ids("references", references)

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}
