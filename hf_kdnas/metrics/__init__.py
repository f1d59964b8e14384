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
    try:
        if ":" in name and not Path(name).exists():
            module, _, attribute = name.partition(":")
            return getattr(importlib.import_module(module), attribute)()
        if Path(name).exists():
            import evaluate

            return evaluate.load(name)
    except (ImportError, AttributeError, FileNotFoundError) as error:
        raise InvalidInput("data.metric", name, f"it can't be loaded: {error}", "Mend the path.") from error
    raise InvalidInput(
        "data.metric",
        name,
        f"metrics are {', '.join(METRICS)}, package.module:Class, or the path of an evaluate module",
        "Choose one of these.",
    )


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
    return next(iter(compute_all(name, predictions, references, **options).values()))


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
    # In memory: ranks and runs side by side would otherwise share a cache file.
    metric = load_metric(name)
    metric.keep_in_memory = True
    values = metric.compute(predictions=list(predictions), references=list(references), **options)
    return {key: float(value) for key, value in values.items()}
