"""Metrics that need no network: `evaluate` modules over scikit-learn and scipy.

Each is a file that `evaluate.load(PATH)` takes as well. Importing this module loads none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_kdnas.errors import InvalidInput

__all__ = [
    "CLASSIFICATION_METRICS",
    "GLUE_METRICS",
    "METRICS",
    "REGRESSION_METRICS",
    "compute",
    "load_metric",
]

CLASSIFICATION_METRICS = ("accuracy", "f1", "matthews")
REGRESSION_METRICS = ("pearson", "spearman")
METRICS = CLASSIFICATION_METRICS + REGRESSION_METRICS

# The metrics that GLUE reports (arXiv 1804.07461, table 1); the first is the one to select by.
GLUE_METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews",),
    "sst2": ("accuracy",),
    "mrpc": ("f1", "accuracy"),
    "stsb": ("pearson", "spearman"),
    "qqp": ("f1", "accuracy"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}


def load_metric(name: str) -> Any:
    """An `evaluate` metric: greater must be better.

    Args:
        name: One of `METRICS`, a class of your own as `package.module:Class`, or the path of an
            `evaluate` module.

    Raises:
        InvalidInput: If there is no such metric.
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
        predictions: Class ids or scores, one per row.
        references: The true ones.
        **options: Passed on, such as F1's `average`.

    Raises:
        InvalidInput: If there is no such metric.
    """
    # In memory: ranks and runs side by side would otherwise share a cache file.
    metric = load_metric(name)
    metric.keep_in_memory = True
    values = metric.compute(predictions=list(predictions), references=list(references), **options)
    return float(next(iter(values.values())))
