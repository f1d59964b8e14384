"""Which members a training step is about."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from hf_kdnas.architecture import Architecture


def extremes(
    space: Iterable[Architecture], parameters: Callable[[Architecture], int]
) -> tuple[Architecture, Architecture, Architecture]:
    """The largest, the middle and the smallest member by parameters; of equals the one that sorts first."""
    ranked = sorted(space, key=lambda member: (parameters(member), member))
    return ranked[-1], ranked[len(ranked) // 2], ranked[0]


def sandwich(
    members: list[Architecture],
    largest: Architecture,
    smallest: Architecture,
    *,
    random_subnets: int,
    seed: int,
    step: int,
) -> list[Architecture]:
    """The members that a step trains: the largest, the smallest and some at random, the same on every rank.

    Source: the sandwich rule of AutoDistil, section 3.2 (arXiv 2201.12507).

    Args:
        members: All of the space, in an order of their own.
        largest: Always trained.
        smallest: Always trained.
        random_subnets: How many are drawn besides, without repeats.
        seed: The run's.
        step: Counted from 0.
    """
    rng = random.Random(f"{seed}/sandwich/{step}")
    others = [member for member in members if member not in (largest, smallest)]
    drawn = rng.sample(others, min(random_subnets, len(others)))
    return list(dict.fromkeys([largest, smallest, *drawn]))
