"""Matthews correlation, as a module for `evaluate.load`, without the network."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
from sklearn.metrics import matthews_corrcoef

from hf_kdnas.metrics.base import OfflineMetric, require_class_ids

_DESCRIPTION = "Correlation of predicted and true classes, from -1 to 1."


class Matthews(OfflineMetric):
    """Matthews correlation."""

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
        return {"matthews": float(matthews_corrcoef(references, predictions))}
