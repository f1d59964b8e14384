"""GLUE's tasks (arXiv 1804.07461, table 1), with the columns and classes of `nyu-mll/glue` on the Hub."""

from __future__ import annotations

from dataclasses import dataclass

_ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class GlueTask:
    """How a task of GLUE is laid out and scored.

    Attributes:
        text: The text column, or the two of a pair.
        labels: Class names in the order of their ids in the column `label`; empty for scores.
        metrics: In the paper's order; the first is the one to select by.
        splits: The splits to report on: the test splits have no labels.
    """

    text: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    splits: tuple[str, ...] = ("validation",)


GLUE = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "mrpc": GlueTask(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "stsb": GlueTask(("sentence1", "sentence2"), (), ("pearson", "spearman")),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        splits=("validation_matched", "validation_mismatched"),
    ),
    "qnli": GlueTask(("question", "sentence"), _ENTAILMENT),
    "rte": GlueTask(("sentence1", "sentence2"), _ENTAILMENT),
    # The other way round than QNLI and RTE.
    "wnli": GlueTask(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}
"""The tasks by their names on the Hub. AX, the diagnostic set, has no labelled rows."""
