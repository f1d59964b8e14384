"""Metrics that need no network: `evaluate` modules over scikit-learn, scipy and seqeval.

Each is a file that `evaluate.load(PATH)` takes as well. Importing this module loads none of them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_kdnas.errors import InvalidInput
from hf_kdnas.metrics.glue import GLUE, GlueTask
from hf_kdnas.resources import import_own

__all__ = [
    "CLASSIFICATION_METRICS",
    "GLUE",
    "GLUE_METRICS",
    "METRICS",
    "REGRESSION_METRICS",
    "GlueTask",
    "compute",
    "compute_all",
    "load_metric",
]

CLASSIFICATION_METRICS = ("accuracy", "f1", "matthews")
REGRESSION_METRICS = ("pearson", "spearman")
METRICS = (*CLASSIFICATION_METRICS, *REGRESSION_METRICS, "seqeval", "squad")

GLUE_METRICS = {name: task.metrics for name, task in GLUE.items()}
"""The metrics that GLUE reports; the first is the one to select by."""


def load_metric(name: str) -> Any:
    """An `evaluate` metric: greater must be better.

    Args:
        name: One of `METRICS`, a class of your own as `package.module:Class`, or the path of an
            `evaluate` module.

    Raises:
        InvalidInput: If there is no such metric.
        MissingPackage: If a metric of the package needs one that isn't installed.
    """
    if name in METRICS:
        return getattr(importlib.import_module(f"{__name__}.{name}"), name.capitalize())()
    own = ":" in name and not Path(name).exists()
    if own or (name and Path(name).exists()):
        return _own_metric(name, own)
    raise InvalidInput(
        "data.metric",
        name,
        f"metrics are {', '.join(METRICS)}, package.module:Class, or the path of an evaluate module",
        "Choose one of these.",
    )


def _own_metric(name: str, is_class: bool) -> Any:
    try:
        if is_class:
            metric = import_own(name)()
        else:
            import evaluate

            metric = evaluate.load(name)
    except Exception as error:  # code of the user's, or of a module that is none
        reason = f"it can't be loaded ({type(error).__name__}: {error})"
        raise InvalidInput("data.metric", name, reason, "Mend the path, or the module.") from error
    if not callable(getattr(metric, "compute", None)):
        raise InvalidInput(
            "data.metric", name, "it has no method compute", "Write compute(predictions=..., references=...)."
        )
    return metric


def compute(name: str, predictions: Sequence[Any], references: Sequence[Any], **options: Any) -> float:
    """The value of a metric (of one that returns several, the first).

    Args:
        name: As for `load_metric`.
        predictions: As the metric takes them: class ids or scores, one per row.
        references: The true ones.
        **options: Passed on, such as F1's `average`.

    Returns:
        The value; not a number where a predicted score is not finite: a search goes on without a
        model that diverged.

    Raises:
        InvalidInput: If there is no such metric, or the rows are not for it.
        MissingPackage: As for `load_metric`.
    """
    if any(isinstance(each, float) and not math.isfinite(each) for each in predictions):
        return math.nan
    return float(next(iter(_values(name, predictions, references, **options).values())))


def compute_all(
    name: str, predictions: Sequence[Any], references: Sequence[Any], **options: Any
) -> dict[str, float]:
    """All values of a metric, by their names.

    Args:
        name: As for `load_metric`.
        predictions: As for `compute`.
        references: The true ones.
        **options: Passed on.

    Raises:
        InvalidInput: If there is no such metric, or the rows are not for it.
        MissingPackage: As for `load_metric`.
    """
    return {key: float(value) for key, value in _values(name, predictions, references, **options).items()}


def _values(
    name: str, predictions: Sequence[Any], references: Sequence[Any], **options: Any
) -> dict[str, Any]:
    """What a metric returns; of a user's own one only the first value has to be a number."""
    # In memory: ranks and runs side by side would otherwise share a cache file.
    metric = load_metric(name)
    metric.keep_in_memory = True
    values: dict[str, Any] = metric.compute(
        predictions=list(predictions), references=list(references), **options
    )
    return values
