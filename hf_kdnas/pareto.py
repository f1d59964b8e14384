"""The Pareto front of quality and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def pareto_front(items: Iterable[T], point: Callable[[T], tuple[float, float]]) -> list[T]:
    """The items that no other one beats: none is as good and cheaper, or as cheap and better.

    Args:
        items: What to compare.
        point: Quality (higher is better) and cost, such as latency (lower is better), of an item.

    Returns:
        The front from the cheapest to the best; of items with equal quality and cost, the first.
    """
    front: list[T] = []
    best = float("-inf")
    for item in sorted(items, key=lambda each: (point(each)[1], -point(each)[0])):
        if point(item)[0] > best:
            front.append(item)
            best = point(item)[0]
    return front
