from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from hf_kdnas.recipe import ConstraintsSection
from hf_kdnas.search.reward import QUALITY_FLOOR, choose_winner, reward, violations


@dataclass(frozen=True)
class Shape:
    reward: float = 0.8
    latency_ms: float = 10.0
    speedup: float = 2.0
    retained: float = 0.95
    parameters: int = 1000


def test_reward_follows_the_papers_formula():
    assert reward(0.8, 0.3) == pytest.approx(0.8 * (0.3 / 0.6) ** -0.06)
    assert reward(0.8, 0.3, alpha=-0.07, beta=0.06) == pytest.approx(0.8 * (0.3 / 0.06) ** -0.07)


def test_reward_at_the_wanted_latency_is_the_quality():
    assert reward(0.8, 0.6) == pytest.approx(0.8)


def test_reward_rises_with_quality_and_with_speed():
    assert reward(0.81, 0.3) > reward(0.8, 0.3) > reward(0.8, 0.4)


@pytest.mark.parametrize("quality", [0.0, -3.0, math.nan, -math.inf])
def test_reward_clamps_what_is_no_positive_quality(quality):
    assert reward(quality, 0.6) == pytest.approx(QUALITY_FLOOR)


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf])
def test_reward_refuses_an_impossible_ratio(ratio):
    with pytest.raises(ValueError, match="ratio"):
        reward(0.8, ratio)


def test_violations_are_relative_and_named():
    constraints = ConstraintsSection(latency_ms=8.0, speedup=4.0, retained=0.9, parameters=500)
    broken = violations(Shape(), constraints)
    assert broken == {
        "latency_ms": pytest.approx(0.25),
        "parameters": pytest.approx(1.0),
        "speedup": pytest.approx(0.5),
    }


def test_a_limit_that_is_reached_exactly_is_met():
    constraints = ConstraintsSection(latency_ms=10.0, speedup=2.0, retained=0.95, parameters=1000)
    assert violations(Shape(), constraints) == {}


def test_winner_without_constraints_has_the_highest_reward():
    low, high = Shape(reward=0.7), Shape(reward=0.9)
    assert choose_winner([low, high], ConstraintsSection()) == (high, True)


def test_winner_is_the_best_of_those_that_meet_the_constraints():
    slow = Shape(reward=0.9, speedup=2.0)
    fast = Shape(reward=0.8, speedup=4.0)
    faster = Shape(reward=0.7, speedup=5.0)
    assert choose_winner([slow, faster, fast], ConstraintsSection(speedup=3.0)) == (fast, True)


def test_nearest_wins_where_none_meets_the_constraints():
    near = Shape(reward=0.7, speedup=2.9, retained=0.97)
    far = Shape(reward=0.9, speedup=1.0, retained=0.99)
    assert choose_winner([far, near], ConstraintsSection(speedup=3.0, retained=0.96)) == (near, False)


def test_equally_near_ones_are_told_apart_by_reward():
    worse, better = Shape(reward=0.7), Shape(reward=0.8)
    assert choose_winner([worse, better], ConstraintsSection(speedup=3.0)) == (better, False)


def test_an_unknown_quality_never_meets_a_constraint():
    unknown = Shape(reward=0.9, retained=math.nan)
    known = Shape(reward=0.7, retained=0.5)
    assert choose_winner([unknown, known], ConstraintsSection(retained=0.9)) == (known, False)


def test_no_finalists_is_an_error():
    with pytest.raises(ValueError, match="no finalists"):
        choose_winner([], ConstraintsSection())
