"""F1 score, as a module for `evaluate.load`, without the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import f1_score

from hf_kdnas.errors import InvalidInput
from hf_kdnas.metrics.base import OfflineMetric, require_class_ids, require_numbers

_DESCRIPTION = """Harmonic mean of precision and recall.

average says of what: binary of class 1 (the default, where there are two classes), micro of all decisions
together, macro the mean over classes, weighted the same by how often each class is true, samples the mean
over rows that have several classes.
"""

_AVERAGES = ("micro", "macro", "weighted")


class F1(OfflineMetric):
    """F1 score of one class per row, or of several (multi-label)."""

    def _info(self) -> evaluate.MetricInfo:
        # evaluate takes the first that the first row fits.
        entries = (datasets.Sequence(datasets.Value("int64")), datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references: per row a class id, or a 0 or 1 for each class",
            features=[datasets.Features({"predictions": each, "references": each}) for each in entries],
        )

    def _check(self, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        if np.ndim(references[0]) == 0:
            require_class_ids("predictions", predictions)
            require_class_ids("references", references)
            return
        _require_several("predictions", predictions)
        _require_several("references", references)
        if len(predictions[0]) != len(references[0]):
            raise InvalidInput(
                "predictions",
                f"{len(predictions[0])} classes",
                f"the references have {len(references[0])}",
                "Give a 0 or 1 for each of the same classes.",
            )

    def _compute(
        self, predictions: Sequence[Any], references: Sequence[Any], average: str = "binary"
    ) -> dict[str, float]:
        found, true = np.asarray(predictions), np.asarray(references)
        allowed = (*_AVERAGES, "samples") if true.ndim == 2 else _AVERAGES
        if true.ndim == 1 and max(found.max(), true.max()) <= 1:
            allowed = ("binary", *allowed)
        if average not in allowed:
            raise InvalidInput(
                "average", average, f"for these rows allowed are {', '.join(allowed)}", "Choose one of these."
            )
        return {"f1": float(f1_score(true, found, average=average, zero_division=0.0))}


def _require_several(field: str, rows: Sequence[Any]) -> None:
    require_numbers(
        field,
        rows,
        2,
        lambda values: (values == 0) | (values == 1),
        "each row has a 0 or 1 for each class",
        "Compare logits with 0 first, and give predictions and references alike.",
    )
