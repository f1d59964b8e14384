from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.space import DIMENSIONS, SearchSpace

SMALL = SearchSpace(
    {
        "num_hidden_layers": (1, 2, 3),
        "hidden_size": (16, 24, 32),
        "num_attention_heads": (2, 3, 4),
        "intermediate_size": (32, 64),
        "hidden_act": ("gelu", "relu"),
    }
)


@pytest.mark.parametrize(
    ("preset", "size", "native"),
    [
        ("kd_nas", 1800, 1800),
        ("autodistil-tiny", 256, 96),
        ("autodistil-small", 256, 96),
        ("autodistil-base", 256, 48),
    ],
)
def test_presets_have_the_published_sizes(preset: str, size: int, native: int) -> None:
    space = SearchSpace.preset(preset)
    assert len(space) == size
    assert len(space.native()) == native


@given(seed=st.integers())
def test_a_draw_is_a_member(seed: int) -> None:
    member = SMALL.sample(random.Random(seed))
    assert member in SMALL
    assert SMALL.architecture(SMALL.values_of(member)) == member


@given(values=st.fixed_dictionaries({name: st.sampled_from(SMALL.dimensions[name]) for name in DIMENSIONS}))
def test_a_choice_of_values_is_a_member_or_not_legal(values: dict) -> None:
    member = SMALL.architecture(values)
    assert (member is None) == (values["hidden_size"] % values["num_attention_heads"] != 0)
    assert member is None or member in SMALL


@given(
    layers=st.integers(1, 12),
    heads=st.integers(1, 12),
    unit=st.sampled_from([8, 16, 32, 64]),
    ratio=st.sampled_from([2, 4]),
)
def test_students_of_a_teacher_can_be_cut_from_it(layers: int, heads: int, unit: int, ratio: int) -> None:
    teacher = Architecture(layers, heads * unit, heads, heads * unit * ratio)
    space = SearchSpace.from_teacher(teacher)
    assert teacher in space
    for member in space:
        assert member.fits_into(teacher)
        assert member.head_size is None
    assert {member.num_hidden_layers for member in space} == set(range(1, layers + 1))


def test_neighbours_are_members_one_step_away() -> None:
    for member in SMALL:
        for neighbour in SMALL.neighbours(member):
            differing = [name for name in DIMENSIONS if getattr(member, name) != getattr(neighbour, name)]
            assert len(differing) == 1
            assert neighbour in SMALL
    assert Architecture(2, 24, 3, 32) in SMALL.neighbours(Architecture(2, 24, 2, 32))


def test_iteration_is_sorted_and_without_repeats() -> None:
    members = list(SMALL)
    assert members == sorted(set(members))
    assert len(members) == len(SMALL)


def test_ratios_name_the_intermediate_size() -> None:
    space = SearchSpace.preset("autodistil-tiny")
    member = Architecture(7, 160, 10, 560)
    assert member in space
    assert space.values_of(member)["intermediate_size"] == 3.5


def test_the_constraint_that_empties_a_space_is_named() -> None:
    with pytest.raises(InvalidInput, match="max_parameters"):
        SMALL.restricted(
            {"layers": lambda member: member.num_hidden_layers > 1, "max_parameters": lambda _: False}
        )


def test_heads_that_divide_no_width_are_an_error() -> None:
    with pytest.raises(InvalidInput, match="num_attention_heads"):
        SearchSpace({**SMALL.dimensions, "num_attention_heads": (5,)})


@pytest.mark.parametrize("name", ["layers", "depth"])
def test_unknown_dimensions_are_an_error(name: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        SearchSpace({**SMALL.dimensions, name: (1,)})


def test_an_unknown_preset_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="autodistil-tiny"):
        SearchSpace.preset("autodistil")


def test_optuna_gets_the_values_of_each_dimension() -> None:
    assert {name: tuple(each.choices) for name, each in SMALL.distributions().items()} == SMALL.dimensions
