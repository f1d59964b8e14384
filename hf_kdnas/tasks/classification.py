"""A class, several of them, or a score of a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_kdnas import metrics
from hf_kdnas.errors import InvalidInput
from hf_kdnas.labels import Labels, read_labels
from hf_kdnas.tasks.base import LabelTask, Row, TaskData, chosen_metrics, source

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_kdnas.recipe import DataSection
    from hf_kdnas.tables import Splits, Table

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

# The usual metrics of each kind, and all of the package that fit it.
_FITTING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    SINGLE_LABEL: (("accuracy",), metrics.CLASSIFICATION_METRICS),
    MULTI_LABEL: (("f1", "accuracy"), metrics.CLASSIFICATION_METRICS),
    REGRESSION: (metrics.REGRESSION_METRICS, metrics.REGRESSION_METRICS),
}


@dataclass(frozen=True)
class Classification(LabelTask):
    """Each row's class id, score, or multi-hot classes (`labels`: int, float, list of float)."""

    head = "SequenceClassification"

    @classmethod
    def load(
        cls, data: DataSection, splits: Splits, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Classification:
        """Lists are several classes a row, other labels one class or a score."""
        labels = read_labels(data, splits)
        kind = REGRESSION if labels.names is None else MULTI_LABEL if labels.listed else SINGLE_LABEL

        def rows(table: Table) -> list[Row]:
            return _tokenise(data, table, labels, tokenizer, max_length)

        return cls(
            kind=kind,
            label_names=labels.names or (),
            metrics=_metrics(data, kind),
            dataset=source(data),
            columns=(*data.text, data.label),
            max_length=max_length,
            pad_token_id=tokenizer.pad_token_id or 0,
            train=rows(splits.train),
            selection=rows(splits.selection),
            reporting=rows(splits.reporting),
            alphabetical=labels.alphabetical,
        )

    @property
    def problem_type(self) -> str:
        """The kind."""
        return self.kind

    def matched_to(self, config: PretrainedConfig) -> TaskData:
        """Names as for any labels, and whether a row may have several of them.

        Raises:
            InvalidInput: If the head has another number of outputs, other names, or another reading.
        """
        theirs = config.problem_type
        if theirs not in (None, self.kind) and MULTI_LABEL in (theirs, self.kind):
            raise InvalidInput(
                "teacher.model",
                f"a head for {theirs}",
                f"the data are for {self.kind} (lists of labels are multi-label)",
                "Choose a teacher of this task, or set teacher.fine_tune to train a new head.",
            )
        return super().matched_to(config)

    def _with_ids(self, labels: Any, new_ids: Sequence[int]) -> Any:
        if self.kind == MULTI_LABEL:
            return [labels[new_ids.index(place)] for place in range(len(labels))]
        return new_ids[labels]

    def score(self, outputs: Sequence[NDArray[Any]], rows: Sequence[Row]) -> dict[str, float]:
        """All metrics of a model's logits, (labels,) each.

        With several labels a row, each pair of row and label counts as one: F1 is then the micro-F1.
        """
        logits, references = np.stack(outputs), [row["labels"] for row in rows]
        macro = {"average": "macro"} if self.num_labels > 2 and self.kind == SINGLE_LABEL else {}
        if self.kind == MULTI_LABEL:
            predictions = (logits > 0).astype(int).flatten().tolist()
            references = np.array(references, int).flatten().tolist()
        else:
            predictions = (logits[:, 0] if self.kind == REGRESSION else logits.argmax(-1)).tolist()
        return {
            name: metrics.compute(name, predictions, references, **(macro if name == "f1" else {}))
            for name in self.metrics
        }


def _metrics(data: DataSection, kind: str) -> tuple[str, ...]:
    """GLUE's own there, else the usual ones."""
    usual, fitting = _FITTING[kind]
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
    column = table[data.label]
    values = _multi_hot(data, labels, column) if labels.listed else labels.encode(column)
    return [
        {**{name: encoded[name][index] for name in names}, "labels": label, "index": index}
        for index, label in enumerate(values)
    ]


def _multi_hot(data: DataSection, labels: Labels, rows: Sequence[Sequence[Any]]) -> list[list[float]]:
    """1.0 at the ids that a row has."""
    hot = []
    for row, ids in zip(rows, labels.encode(rows), strict=True):
        if len(set(ids)) < len(ids):
            raise InvalidInput(
                "data.label",
                f"{data.label} with {row}",
                "lists name each class of a row once: ids or names, not a 0 or 1 for each class",
                "Write the ids of a row's classes.",
            )
        hot.append([float(place in ids) for place in range(len(labels.names or ()))])
    return hot
