"""Classes or a score of a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_kdnas import metrics
from hf_kdnas.labels import Labels, read_labels
from hf_kdnas.tasks.base import LabelTask, Row, chosen_metrics, source

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from hf_kdnas.recipe import DataSection
    from hf_kdnas.tables import Splits, Table

SINGLE_LABEL = "single_label_classification"
REGRESSION = "regression"

# The usual metrics of each kind, and all of the package that fit it.
_FITTING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    SINGLE_LABEL: (("accuracy",), metrics.CLASSIFICATION_METRICS),
    REGRESSION: (metrics.REGRESSION_METRICS, metrics.REGRESSION_METRICS),
}


@dataclass(frozen=True)
class Classification(LabelTask):
    """One class, or one score, of each row (`labels`)."""

    head = "SequenceClassification"

    @classmethod
    def load(
        cls, data: DataSection, splits: Splits, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Classification:
        """Classes where the labels are, else scores."""
        labels = read_labels(data, splits)

        def rows(table: Table) -> list[Row]:
            return _tokenise(data, table, labels, tokenizer, max_length)

        return cls(
            kind=REGRESSION if labels.names is None else SINGLE_LABEL,
            label_names=labels.names or (),
            metrics=_metrics(data, labels),
            dataset=source(data),
            columns=(*data.text, data.label),
            max_length=max_length,
            pad_token_id=tokenizer.pad_token_id or 0,
            train=rows(splits.train),
            selection=rows(splits.selection),
            reporting=rows(splits.reporting),
        )

    @property
    def problem_type(self) -> str:
        """The kind."""
        return self.kind

    def _with_ids(self, labels: Any, new_ids: Sequence[int]) -> Any:
        return new_ids[labels]

    def score(self, outputs: Sequence[NDArray[Any]], rows: Sequence[Row]) -> dict[str, float]:
        """All metrics of a model's logits, (labels,) each."""
        logits, references = np.stack(outputs), [row["labels"] for row in rows]
        predictions = (logits[:, 0] if self.kind == REGRESSION else logits.argmax(-1)).tolist()
        macro = {"average": "macro"} if self.num_labels > 2 else {}
        return {
            name: metrics.compute(name, predictions, references, **(macro if name == "f1" else {}))
            for name in self.metrics
        }


def _metrics(data: DataSection, labels: Labels) -> tuple[str, ...]:
    """GLUE's own there, else the usual ones."""
    usual, fitting = _FITTING[REGRESSION if labels.names is None else SINGLE_LABEL]
    if data.metric is not None:
        return chosen_metrics(data.metric, usual, fitting)
    glue = data.path.removeprefix("data:glue/") if data.path.startswith("data:glue/") else data.name
    is_glue = data.path.startswith("data:glue/") or data.path in ("nyu-mll/glue", "glue")
    return metrics.GLUE_METRICS.get(glue or "", usual) if is_glue else usual


def _tokenise(
    data: DataSection, table: Table, labels: Labels, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Row]:
    encoded = tokenizer(
        *(table[column] for column in data.text), truncation=True, max_length=max_length, verbose=False
    )
    names = ["input_ids"]
    if len(data.text) == 2 and "token_type_ids" in encoded:
        names.append("token_type_ids")
    ids = labels.encode(table[data.label])
    return [
        {**{name: encoded[name][index] for name in names}, "labels": label, "index": index}
        for index, label in enumerate(ids)
    ]
