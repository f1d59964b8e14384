"""F1 score, as a module for `evaluate.load`, without the network."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
from sklearn.metrics import f1_score

_DESCRIPTION = (
    "Harmonic mean of precision and recall: of class 1, or with average='macro' the mean over classes."
)


class F1(evaluate.Metric):  # type: ignore[misc]
    """F1 score."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references: one class id per row",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], average: str = "binary"
    ) -> dict[str, float]:
        score = f1_score(references, predictions, average=average, zero_division=0.0)
        return {"f1": float(score)}
