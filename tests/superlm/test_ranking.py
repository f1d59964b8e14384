"""Ranking members, and choosing one within a budget."""

from __future__ import annotations

import pytest

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.superlm.ranking import Member, best_by, within

SMALL, MIDDLE, LARGE, WORSE = (
    Member("one", Architecture(1, 16, 2, 32), 3.0, 100, 10),
    Member("one", Architecture(2, 16, 2, 32), 2.0, 200, 20),
    Member("two", Architecture(3, 32, 4, 64), 1.0, 400, 80),
    Member("two", Architecture(2, 32, 4, 64), 2.5, 300, 60),
)
MEMBERS = [LARGE, WORSE, SMALL, MIDDLE]


def test_members_within_a_budget_come_best_first() -> None:
    assert within(MEMBERS, parameters=None, flops=None) == [LARGE, MIDDLE, WORSE, SMALL]
    assert within(MEMBERS, parameters=300, flops=None) == [MIDDLE, WORSE, SMALL]
    assert within(MEMBERS, parameters=300, flops=20) == [MIDDLE, SMALL]


def test_a_budget_below_the_smallest_member_is_refused() -> None:
    with pytest.raises(InvalidInput, match="got 99; the smallest member, 1L-16H-32F-2A-gelu, has 100"):
        within(MEMBERS, parameters=99, flops=None)
    with pytest.raises(InvalidInput, match="got 9; the smallest member, 1L-16H-32F-2A-gelu, has 10"):
        within(MEMBERS, parameters=None, flops=9)


def test_the_front_leaves_out_what_is_beaten_in_both() -> None:
    assert best_by("parameters", MEMBERS) == [SMALL, MIDDLE, LARGE]
    assert best_by("parameters", [WORSE]) == [WORSE]


def test_the_front_is_one_of_the_cost_that_is_asked_for() -> None:
    wide = Member("two", Architecture(1, 32, 4, 64), 1.5, 500, 15)
    assert best_by("flops", [*MEMBERS, wide]) == [SMALL, wide, LARGE]
    assert wide not in best_by("parameters", [*MEMBERS, wide])


def test_a_member_comes_back_from_json() -> None:
    assert [Member.from_dict(each.as_dict()) for each in MEMBERS] == MEMBERS
