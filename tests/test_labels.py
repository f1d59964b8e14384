"""What label values mean."""

from __future__ import annotations

from typing import Any

import pytest

from hf_kdnas.errors import InvalidInput
from hf_kdnas.labels import read_labels
from hf_kdnas.recipe import DataSection
from hf_kdnas.tables import Splits


def splits_of(labels: list[Any], class_names: tuple[str, ...] | None = None) -> Splits:
    table: dict[str, list[Any]] = {"label": labels}
    return Splits(table, table, table, class_names)


@pytest.mark.parametrize(
    ("values", "class_names", "given", "names", "encoded"),
    [
        ([0, 1, 1, 2], None, None, ("0", "1", "2"), [0, 1, 1, 2]),
        ([0, 1, 1, 2], None, ["a", "b", "c"], ("a", "b", "c"), [0, 1, 1, 2]),
        ([0, 2, 2, 0], None, ["a", "b", "c"], ("a", "b", "c"), [0, 2, 2, 0]),
        ([1, 5, 3, 1], None, None, ("1", "3", "5"), [0, 2, 1, 0]),
        ([False, True], None, ["no", "yes"], ("no", "yes"), [0, 1]),
        (["b", "a", "b"], None, None, ("a", "b"), [1, 0, 1]),
        (["b", "a", "b"], None, ["b", "a"], ("b", "a"), [0, 1, 0]),
        ([0, 1, 1], ("bad", "good"), None, ("bad", "good"), [0, 1, 1]),
        ([0, 1, 1], ("bad", "good"), ["good", "bad"], ("good", "bad"), [1, 0, 0]),  # put in order
        ([0, 1, 1], ("bad", "good"), ["neg", "pos"], ("neg", "pos"), [0, 1, 1]),  # replaced
    ],
)
def test_class_ids(
    values: list[Any],
    class_names: tuple[str, ...] | None,
    given: list[str] | None,
    names: tuple[str, ...],
    encoded: list[int],
) -> None:
    labels = read_labels(DataSection(path="d", labels=given), splits_of(values, class_names))
    assert labels.names == names
    assert labels.encode(values) == encoded


def test_scores() -> None:
    labels = read_labels(DataSection(path="d"), splits_of([0.5, 4.0]))
    assert labels.names is None
    assert labels.encode([0.5, 4.0]) == [0.5, 4.0]
    ratings = read_labels(DataSection(path="d", metric="spearman"), splits_of([1, 5]))
    assert ratings.encode([1, 5]) == [1.0, 5.0]
    assert isinstance(ratings.encode([1])[0], float)


@pytest.mark.parametrize(
    ("values", "options", "field", "part"),
    [
        ([-1, 0, 1], {}, "data.label", r"data\.where: \{label: \[0, 1\]\}"),
        ([1, 1], {}, "data.label", "all rows to train on have the label 1"),
        ([0, "a"], {}, "data.label", "int, str"),
        ([["a"], "b"], {}, "data.label", "list, str"),
        ([[0.5], [1.0]], {}, "data.label", "lists with float"),
        ([[], []], {}, "data.label", "not all of them empty"),
        ([["a"], ["b", "c"]], {"labels": ["a", "b"]}, "data.labels", "holds a, b, c"),
        ([0.5, 1.5], {"metric": "accuracy"}, "data.metric", "scores, not classes"),
        (["a", "b"], {"metric": "pearson"}, "data.label", "str"),
        (["a", "b"], {"labels": ["a", "c"]}, "data.labels", "holds a, b"),
        ([0, 1, 2], {"labels": ["a", "b"]}, "data.labels", "3 classes"),
        ([0, 1], {"labels": ["a", "a"]}, "data.labels", "once"),
    ],
)
def test_labels_that_do_not_fit(values: list[Any], options: dict[str, Any], field: str, part: str) -> None:
    with pytest.raises(InvalidInput, match=part) as caught:
        read_labels(DataSection(path="d", **options), splits_of(values))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("values", "class_names", "names", "encoded"),
    [
        ([["b", "a"], [], ["a"]], None, ("a", "b"), [[1, 0], [], [0]]),
        ([[0, 2], [2]], ("x", "y", "z"), ("x", "y", "z"), [[0, 2], [2]]),
    ],
)
def test_lists_of_classes(
    values: list[Any], class_names: tuple[str, ...] | None, names: tuple[str, ...], encoded: list[Any]
) -> None:
    labels = read_labels(DataSection(path="d"), splits_of(values, class_names))
    assert (labels.names, labels.listed) == (names, True)
    assert labels.encode(values) == encoded


def test_an_id_that_the_data_set_does_not_name() -> None:
    with pytest.raises(InvalidInput, match="names 2 classes"):
        read_labels(DataSection(path="d"), splits_of([0, 1, 2], ("bad", "good")))
