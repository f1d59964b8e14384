"""What the values of a label column mean: classes, several of them, or scores."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from hf_kdnas import metrics
from hf_kdnas.errors import InvalidInput

if TYPE_CHECKING:
    from hf_kdnas.recipe import DataSection
    from hf_kdnas.tables import Splits


IGNORED = -100  # Transformers' label for "no label here"


@dataclass(frozen=True)
class Labels:
    """How label values become ids, or scores.

    Attributes:
        names: Class names in the order of their ids; None for a regression.
        ids: The id of each value that occurs; empty for a regression.
        listed: Whether a row has a list of values.
        alphabetical: Whether texts are numbered by the alphabet, for want of any other order.
    """

    names: tuple[str, ...] | None
    ids: dict[Hashable, int]
    listed: bool = False
    alphabetical: bool = False

    def encode(self, values: Iterable[Any]) -> list[Any]:
        """Class ids (lists of them, where a row has several), or scores as floats."""
        if self.listed:
            return [[self.ids[value] for value in row] for row in values]
        if self.names is None:
            return [float(value) for value in values]
        return [self.ids[value] for value in values]


def read_labels(data: DataSection, splits: Splits) -> Labels:
    """What the label column's values mean.

    Floats are scores, and so are whole numbers where the metric is a correlation of scores;
    anything else is classes. A column of lists has several of them a row.

    Raises:
        InvalidInput: If the values don't fit the metric or the names given, or are of one class.
    """
    tables = (splits.train, splits.selection, splits.reporting)
    column = [value for table in tables for value in table[data.label]]
    training = splits.train[data.label]
    listed = isinstance(column[0], list)
    if listed:
        column, training = (_joined(data, each) for each in (column, training))
    kinds = {type(value) for value in column}
    scores = not listed and (float in kinds or data.metric in metrics.REGRESSION_METRICS)
    if not kinds <= ({float, int} if scores else {int, bool} if int in kinds else {str, bool}):
        lists = "lists with " if listed else ""
        raise InvalidInput(
            "data.label",
            f"{data.label} with {lists}{', '.join(sorted(kind.__name__ for kind in kinds))}",
            "classes are whole numbers or texts, scores are numbers",
            "Choose another column or metric.",
        )
    if scores:
        if data.metric in metrics.CLASSIFICATION_METRICS:
            raise InvalidInput(
                "data.metric",
                data.metric,
                f"{data.label} holds scores, not classes",
                "Choose pearson or spearman.",
            )
        _require_scores(data.label, training, column)
        return Labels(None, {})
    values = set(column)
    labels = _text_labels(data, values) if str in kinds else _number_labels(data, values, splits.class_names)
    _require_several(data.label, training)
    return replace(labels, listed=listed)


def _joined(data: DataSection, rows: Sequence[Any]) -> list[Any]:
    """The values of all rows."""
    kinds = sorted({type(row).__name__ for row in rows})
    values = list(chain.from_iterable(rows)) if kinds == ["list"] else []
    if not values:
        raise InvalidInput(
            "data.label",
            f"{data.label} with {', '.join(kinds)}",
            "rows have lists of labels, not all of them empty",
            "Choose another column.",
        )
    return values


def _require_several(column: str, training: Sequence[Any]) -> None:
    if len(set(training)) < 2:
        raise InvalidInput(
            "data.label",
            column,
            f"all rows to train on have the label {training[0]!r}",
            "Choose another column, or other rows with data.where.",
        )


def _require_scores(column: str, training: Sequence[float], found: Sequence[float]) -> None:
    infinite = sum(not math.isfinite(value) for value in found)
    if infinite:
        raise InvalidInput(
            "data.label",
            f"{column} with {infinite} infinite values",
            "scores are finite numbers",
            "Remove these rows from the data.",
        )
    _require_several(column, training)


def _text_labels(data: DataSection, values: set[str]) -> Labels:
    names = tuple(data.labels or sorted(values))
    if not values <= set(names):
        raise _wrong_names(data, f"the column {data.label} holds {', '.join(sorted(values)[:20])}")
    ids: dict[Hashable, int] = {name: index for index, name in enumerate(names)}
    return Labels(names, ids, alphabetical=not data.labels)


def _number_labels(data: DataSection, values: set[int], class_names: tuple[str, ...] | None) -> Labels:
    if class_names and max(values) >= len(class_names):
        raise InvalidInput(
            "data.label",
            f"{data.label} with {max(values)}",
            f"the data set names {len(class_names)} classes, from 0",
            "Mend these rows.",
        )
    if min(values) < 0:
        kept = sorted(each for each in values if each >= 0)[:5]
        raise InvalidInput(
            "data.label",
            f"{data.label} with {min(values)}",
            "a negative number marks rows without a label",
            f"Leave them out: data.where: {{{data.label}: {kept}}}",
        )
    numbers = list(range(len(class_names))) if class_names else _class_numbers(data, sorted(values))
    found = class_names or tuple(map(str, numbers))
    names = tuple(data.labels or found)
    if len(names) != len(found) or len(set(names)) != len(names):
        raise _wrong_names(data, f"the data have {len(found)} classes: {', '.join(found[:20])}")
    # Names that the data have are put in the order asked for; others replace them in place.
    ordered = names.index if set(names) == set(found) else found.index
    return Labels(names, {number: ordered(found[place]) for place, number in enumerate(numbers)})


def _class_numbers(data: DataSection, values: list[int]) -> list[int]:
    """0 .. n-1 where that is what the values are, perhaps with some missing; else the values."""
    size = len(data.labels or values)
    return list(range(size)) if values[-1] < size else values


def _wrong_names(data: DataSection, found: str) -> InvalidInput:
    return InvalidInput("data.labels", data.labels, found, "Name every class once.")
