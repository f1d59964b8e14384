"""The reward of a candidate (KD-NAS, arXiv 2303.09639), and the rule that names the winner."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

# A quality such as `1 - loss` or Matthews correlation may turn negative; the reward's power needs a
# positive base, and a student that failed should rank below every other.
QUALITY_FLOOR = 1e-4


class Finalist(Protocol):
    """A student that was distilled in full."""

    @property
    def reward(self) -> float:
        """Reward on the selection split."""

    @property
    def latency_ms(self) -> float:
        """Median latency, in milliseconds."""

    @property
    def speedup(self) -> float:
        """Teacher's latency / student's, timed in the same run."""

    @property
    def retained(self) -> float:
        """Student's quality / teacher's."""

    @property
    def parameters(self) -> int:
        """Number of parameters."""


class Constraints(Protocol):
    """What the winner should keep to, as in a recipe; None asks for nothing."""

    @property
    def latency_ms(self) -> float | None:
        """Highest median latency, in milliseconds."""

    @property
    def speedup(self) -> float | None:
        """Least speed-up over the teacher."""

    @property
    def retained(self) -> float | None:
        """Least part of the teacher's quality."""

    @property
    def parameters(self) -> int | None:
        """Most parameters."""


FinalistT = TypeVar("FinalistT", bound=Finalist)


def reward(quality: float, ratio: float, alpha: float = -0.06, beta: float = 0.6) -> float:
    """Reward of a student: `quality * (latency(S) / (beta * latency(T))) ** alpha`.

    Source: KD-NAS, arXiv 2303.09639; alpha and beta by its public re-implementation.

    Args:
        quality: Higher is better; below QUALITY_FLOOR, or not a number, it counts as that floor.
        ratio: latency(S) / latency(T), measured in the same run.
        alpha: How much latency counts, at most 0.
        beta: The wanted part of the teacher's latency, where the second factor is 1.

    Raises:
        ValueError: If the ratio is not positive and finite, or beta is not positive.
    """
    if not (math.isfinite(ratio) and ratio > 0 and beta > 0):
        raise ValueError(f"ratio and beta must be positive, got {ratio} and {beta}")
    base = quality if quality > QUALITY_FLOOR else QUALITY_FLOOR
    return float(base * (ratio / beta) ** alpha)


def violations(finalist: Finalist, constraints: Constraints) -> dict[str, float]:
    """The constraints that a finalist breaks, each with how far off it is, relative to what is asked."""
    ceilings = {"latency_ms": constraints.latency_ms, "parameters": constraints.parameters}
    floors = {"speedup": constraints.speedup, "retained": constraints.retained}
    broken = {}
    for name, limit in ceilings.items():
        if limit is not None and getattr(finalist, name) > limit:
            broken[name] = getattr(finalist, name) / limit - 1
    for name, limit in floors.items():
        # Written so that a value that is not a number breaks the constraint.
        if limit is not None and not getattr(finalist, name) >= limit:
            broken[name] = 1 - getattr(finalist, name) / limit
    return broken


def by_merit(finalists: Iterable[FinalistT], constraints: Constraints) -> list[FinalistT]:
    """The best first: those that meet the constraints by reward, then the nearest to them.

    Nearness is the sum of relative violations; equals are ordered by reward, then by latency.
    """

    def rank(finalist: FinalistT) -> tuple[float, float, float]:
        distance = sum(violations(finalist, constraints).values())
        return (math.inf if math.isnan(distance) else distance, -finalist.reward, finalist.latency_ms)

    return sorted(finalists, key=rank)


def choose_winner(finalists: Sequence[FinalistT], constraints: Constraints) -> tuple[FinalistT, bool]:
    """The finalist of highest reward among those that meet the constraints.

    If none does, the nearest one.

    Returns:
        The winner, and whether it meets the constraints.

    Raises:
        ValueError: If there are no finalists.
    """
    if not finalists:
        raise ValueError("there are no finalists to choose from")
    winner = by_merit(finalists, constraints)[0]
    return winner, not violations(winner, constraints)
