from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.objectives import Relations
from hf_kdnas.errors import InvalidInput
from hf_kdnas.space import SearchSpace, partition
from hf_kdnas.superlm.spaces import check_relation_heads, relation_heads

BERT = Architecture(12, 768, 12, 3072)
MINILM = Architecture(6, 384, 12, 1536)
TINY = SearchSpace.preset("autodistil-tiny").native()


@pytest.mark.parametrize("teacher", [BERT, MINILM])
def test_16_relation_heads_suit_the_papers_widths(teacher: Architecture) -> None:
    for size in ("tiny", "small", "base"):
        space = SearchSpace.preset(f"autodistil-{size}")
        assert relation_heads(space, teacher) == relation_heads(space.native(), teacher) == 16
    assert {relation_heads(space, teacher) for space in partition(teacher)} == {16}


def test_fewer_where_a_width_asks_for_it() -> None:
    (space,) = partition(Architecture(4, 312, 12, 1200), 1)
    assert relation_heads(space, Architecture(4, 312, 12, 1200)) == 13
    assert relation_heads(TINY, Architecture(4, 312, 12, 1200)) == 8  # the teacher's width counts
    assert relation_heads(SearchSpace.preset("kd_nas"), BERT) == 16


@given(heads=st.integers(1, 12), unit=st.sampled_from([2, 6, 20, 32, 64]), number=st.integers(-1, 40))
def test_what_is_accepted_divides_every_width(heads: int, unit: int, number: int) -> None:
    teacher = Architecture(2, heads * unit, heads, heads * unit * 4)
    (space,) = partition(teacher, 1)
    widths = {member.hidden_size for member in space} | {teacher.hidden_size}
    divides = number > 0 and all(width % number == 0 for width in widths)
    if divides:
        check_relation_heads(number, space, teacher)
        assert number > 16 or number <= relation_heads(space, teacher)
    else:
        assert number != relation_heads(space, teacher)
        with pytest.raises(InvalidInput, match="relation_heads"):
            check_relation_heads(number, space, teacher)


def test_a_refusal_names_the_width_and_the_numbers_that_are_possible() -> None:
    with pytest.raises(InvalidInput, match=r"got 12; .* not divide 128; allowed are 1, 2, 4, 8, 16, 32\."):
        check_relation_heads(12, TINY, BERT)
    with pytest.raises(InvalidInput, match=r"got 64; .* not divide 160;"):
        check_relation_heads(64, TINY, BERT)
    with pytest.raises(InvalidInput, match="got 0;"):
        check_relation_heads(0, TINY, BERT)
    check_relation_heads(32, TINY, BERT)


def test_the_objective_takes_the_number_for_every_member() -> None:
    number = relation_heads(TINY, BERT)
    assert {Relations(member, BERT, relation_heads=number).relation_heads for member in TINY} == {16}
