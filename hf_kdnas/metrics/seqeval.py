"""F1 of spans in tagged words, as a module for `evaluate.load`, without the network."""

from __future__ import annotations

import re
from collections.abc import Sequence

import datasets
import evaluate

from hf_kdnas.errors import InvalidInput, MissingPackage
from hf_kdnas.metrics.base import OfflineMetric

try:
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
except ImportError as error:
    raise MissingPackage("seqeval", "to score spans of tags", '"hf-kdnas[seqeval]"') from error

_DESCRIPTION = """F1, precision and recall of spans: one counts where its type, first and last word are right.

As the script of CoNLL-2000 counts, over all types together, by the package seqeval.
"""

_CITATION = "Tjong Kim Sang and Buchholz, Introduction to the CoNLL-2000 Shared Task: Chunking, 2000"

# What seqeval reads; it makes spans of any other tag as well, by its first letter.
_TAG = re.compile(r"O|[BIES](-.+)?")


class Seqeval(OfflineMetric):
    """F1 of spans."""

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description="predictions and references: per text a tag for each word, such as B-PER",
            features=datasets.Features({"predictions": tags, "references": tags}),
            reference_urls=["https://github.com/chakki-works/seqeval"],
        )

    def _check(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> None:
        _require_tags("predictions", predictions)
        _require_tags("references", references)
        for row, (found, true) in enumerate(zip(predictions, references, strict=True)):
            if len(found) != len(true):
                raise InvalidInput(
                    "predictions",
                    f"{len(found)} tags in row {row}",
                    f"its references are {len(true)}",
                    "Give a tag for each word, and none for other tokens.",
                )

    def _compute(
        self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, average="micro", zero_division=0
        )
        return {"f1": float(f1), "precision": float(precision), "recall": float(recall)}


def _require_tags(field: str, rows: Sequence[Sequence[str]]) -> None:
    for row, tags in enumerate(rows):
        if isinstance(tags, str) or not hasattr(tags, "__len__"):
            raise InvalidInput(field, tags, "each row is a list of tags", "Give a tag for each word.")
        wrong = [tag for tag in tags if not (isinstance(tag, str) and _TAG.fullmatch(tag))]
        if wrong:
            raise InvalidInput(
                field,
                f"{wrong[0]!r} in row {row}",
                "tags are O, and B-, I-, E- or S- before the type of a span",
                "Give tags by name; those that mark no spans are scored by accuracy.",
            )
