from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import ElectraConfig

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.slicing import head_rows
from hf_kdnas.space import DIMENSIONS, SearchSpace, partition

MINILM = Architecture(6, 384, 12, 1536)
MPNET = Architecture(12, 768, 12, 3072)

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
    assert {member.head_size for member in space.native()} == {None}
    assert preset == "kd_nas" or {member.attention_head_size for member in space} == {64}


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
            allowed = SMALL.dimensions[differing[0]]
            here, there = (allowed.index(getattr(each, differing[0])) for each in (member, neighbour))
            assert abs(here - there) == 1
            assert neighbour in SMALL
    assert Architecture(2, 24, 3, 32) in SMALL.neighbours(Architecture(2, 24, 2, 32))


def test_ratios_of_widths_that_are_rounded() -> None:
    space = SearchSpace(
        {
            "num_hidden_layers": [2],
            "hidden_size": [105],
            "num_attention_heads": [3],
            "intermediate_size": [2.5, 3.0],
            "hidden_act": ["gelu"],
        },
        ratio=True,
    )
    narrow, wide = space
    assert space.values_of(narrow)["intermediate_size"] == 2.5
    assert space.neighbours(narrow) == [wide]


def test_iteration_is_sorted_and_without_repeats() -> None:
    members = list(SMALL)
    assert members == sorted(set(members))
    assert len(members) == len(SMALL)


def test_ratios_name_the_intermediate_size() -> None:
    space = SearchSpace.preset("autodistil-tiny")
    member = Architecture(7, 160, 10, 560, head_size=64)
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


def widths(space: SearchSpace) -> list[int]:
    return sorted({member.hidden_size for member in space})


@pytest.mark.parametrize(
    ("teacher", "wanted", "depths"),
    [
        (
            MINILM,
            [[64, 96, 128], [160, 192, 224, 256], [288, 320, 352, 384]],
            [(2, 3, 4, 5), (3, 4, 5, 6), (3, 4, 5, 6)],
        ),
        (
            MPNET,
            [[128, 192, 256], [320, 384, 448, 512], [576, 640, 704, 768]],
            [(4, 5, 6, 7), (9, 10, 11, 12), (9, 10, 11, 12)],
        ),
    ],
)
def test_a_partition_is_the_papers_for_the_teachers_own_sizes(
    teacher: Architecture, wanted: list[list[int]], depths: list[tuple[int, ...]]
) -> None:
    spaces = partition(teacher)
    assert [widths(space) for space in spaces] == wanted
    assert [space.dimensions["num_hidden_layers"] for space in spaces] == depths
    ratios = [space.dimensions["intermediate_size"] for space in spaces]
    assert ratios == [(2.0, 2.5, 3.0, 3.5), (2.5, 3.0, 3.5, 4.0), (2.5, 3.0, 3.5, 4.0)]
    assert [len(space) for space in spaces] == [4 * 4 * len(each) for each in wanted]
    for member in (member for space in spaces for member in space):
        # Its heads are the teacher's first ones, whole.
        assert member.attention_head_size == teacher.attention_head_size
        assert head_rows(teacher, member).tolist() == list(range(member.hidden_size))


@given(
    layers=st.integers(1, 24),
    heads=st.integers(1, 16),
    unit=st.sampled_from([8, 13, 26, 32, 64]),
    ratio=st.sampled_from([1, 1.3, 2, 3.8, 4]),
    k=st.integers(1, 5),
)
def test_sub_spaces_are_apart_and_cut_from_the_teacher(
    layers: int, heads: int, unit: int, ratio: float, k: int
) -> None:
    teacher = Architecture(layers, heads * unit, heads, int(heads * unit * ratio))
    whole = heads - (heads + 5) // 6 + 1  # widths of whole heads from a sixth of the teacher's on
    if k > whole:
        with pytest.raises(InvalidInput, match=f"1 to {whole} sub-spaces"):
            partition(teacher, k)
        return
    spaces = partition(teacher, k)
    assert len(spaces) == k
    assert 6 * widths(spaces[0])[0] <= teacher.hidden_size + 5 * unit
    assert widths(spaces[-1])[-1] == teacher.hidden_size
    for smaller, larger in itertools.pairwise(spaces):
        assert widths(smaller)[-1] < widths(larger)[0]
    for space in spaces:
        assert all(len(values) <= 4 for values in space.dimensions.values())
        assert len(widths(space)) >= min(3, 2 if unit % 2 == 0 else 1)
        assert widths(space)[-1] % unit == 0
        for member in space:
            assert member.head_size is None
            assert member.fits_into(teacher)
            assert member.fits_into(space.widest)
            assert member.attention_head_size in (unit, unit // 2)
            assert space.architecture(space.values_of(member)) == member
            space.neighbours(member)


def test_heads_of_half_the_size_fill_up_a_narrow_sub_space() -> None:
    small, middle, large = partition(Architecture(4, 512, 8, 2048), 3)
    assert [widths(each) for each in (small, middle)] == [[96, 128, 160, 192], [224, 256, 288, 320]]
    assert widths(large) == [384, 448, 512]
    assert {(member.hidden_size, member.num_attention_heads) for member in small} == {
        (96, 3),
        (128, 2),
        (160, 5),
        (192, 3),
    }


@pytest.mark.parametrize("k", [-1, 0, 12])
def test_more_sub_spaces_than_widths_are_refused(k: int) -> None:
    with pytest.raises(InvalidInput, match="1 to 11 sub-spaces"):
        partition(MINILM, k)
    assert len(partition(MINILM, 11)) == 11


@pytest.mark.parametrize(("embedding", "gone"), [(12, {12}), (16, {12, 16}), (32, set())])
def test_no_stock_electra_has_a_map_between_equal_widths(embedding: int, gone: set[int]) -> None:
    config = ElectraConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=64, embedding_size=embedding
    )
    found = {width for space in partition(config, 2) for width in widths(space)}
    assert found == {4, 8, 12, 16, 20, 24, 28, 32} - gone


def test_a_partition_of_every_family_is_held_by_its_stock_config(tiny_config) -> None:
    for member in (member for space in partition(tiny_config, 2) for member in space):
        held = Architecture.from_config(member.apply_to(tiny_config))
        assert replace(held, head_size=None) == member
        assert held.attention_head_size == member.attention_head_size


@pytest.mark.parametrize(
    ("preset", "widest"),
    [
        ("autodistil-tiny", "7L-224H-784F-8A-gelu"),
        ("autodistil-small", "12L-352H-1408F-8A-gelu"),
        ("autodistil-base", "12L-640H-2560F-10A-gelu"),
        ("kd_nas", "12L-768H-3072F-12A-gelu"),
    ],
)
def test_every_member_fits_into_the_widest_shape(preset: str, widest: str) -> None:
    whole = SearchSpace.preset(preset)
    assert whole.native().widest.key == widest
    for space in (whole, whole.native()):
        assert all(member.fits_into(space.widest) for member in space)


@pytest.mark.parametrize("preset", ["autodistil-tiny", "autodistil-small", "autodistil-base"])
def test_members_within_a_limit_fit_as_well(preset: str) -> None:
    """With heads of one size, narrow members may have more of them than the widest that is left."""
    whole = SearchSpace.preset(preset)
    for most in range(1, 256, 8):
        limit = sorted(member.flops(128) for member in whole)[most]
        space = whole.restricted({"FLOPs": lambda member, limit=limit: member.flops(128) <= limit})
        assert all(member.fits_into(space.widest) for member in space)


def test_the_widest_shape_need_not_be_a_member() -> None:
    space = SMALL.restricted(
        {"narrow or shallow": lambda member: member.hidden_size < 32 or member.num_hidden_layers < 3}
    )
    assert space.widest == Architecture(3, 32, 4, 64)
    assert space.widest not in space
