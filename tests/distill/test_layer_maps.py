"""Layer maps against the papers' own formulas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_kdnas.distill.layer_maps import KINDS, layer_pairs
from hf_kdnas.errors import InvalidInput


@pytest.mark.parametrize(
    ("kind", "teacher", "student", "pairs"),
    [
        ("last", 12, 4, [(9, 1), (10, 2), (11, 3), (12, 4)]),
        ("uniform", 12, 4, [(3, 1), (6, 2), (9, 3), (12, 4)]),
        ("uniform", 6, 4, [(2, 1), (3, 2), (5, 3), (6, 4)]),
        ("uniform+last", 12, 4, [(3, 1), (9, 1), (6, 2), (10, 2), (9, 3), (11, 3), (12, 4)]),
        ("uniform+last", 6, 4, [(1, 1), (3, 1), (2, 2), (4, 2), (3, 3), (5, 3), (4, 4), (6, 4)]),
        (
            "uniform-consecutive",
            6,
            3,
            [(0, 1), (1, 1), (2, 1), (2, 2), (3, 2), (4, 2), (4, 3), (5, 3), (6, 3)],
        ),
        ("uniform-consecutive", 3, 2, [(0, 1), (1, 1), (2, 1), (1, 2), (2, 2), (3, 2)]),
        ([[6, 2], [0, 0]], 6, 3, [(0, 0), (6, 2)]),
    ],
)
def test_pairs(kind, teacher, student, pairs):
    assert layer_pairs(kind, teacher, student) == pairs


@given(st.sampled_from(KINDS), st.integers(1, 24), st.integers(1, 24))
def test_every_student_layer_learns_from_layers_that_exist(kind, teacher, student):
    if student > teacher and kind != "uniform-consecutive":
        with pytest.raises(InvalidInput, match="no deeper than the teacher"):
            layer_pairs(kind, teacher, student)
        return
    pairs = layer_pairs(kind, teacher, student)
    assert {pair[1] for pair in pairs} == set(range(1, student + 1))
    assert all(0 <= pair[0] <= teacher for pair in pairs)
    assert max(pair[0] for pair in pairs) == (
        teacher if kind != "uniform+last" else max(teacher, student * (teacher // student))
    )


@given(st.integers(1, 24), st.integers(1, 24))
def test_all_teacher_layers_contribute_to_uniform_consecutive(teacher, student):
    assert {pair[0] for pair in layer_pairs("uniform-consecutive", teacher, student)} == set(
        range(teacher + 1)
    )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("middle", "layer maps are last"),
        ([[4, 1]], "the teacher has layers 0 to 3"),
        ([[1, 3]], "the student 0 to 2"),
        ([[1]], "a pair is"),
        ([], "at least one pair"),
    ],
)
def test_refused(kind, message):
    with pytest.raises(InvalidInput, match=f"^objectives.hidden.layers: .*{message}"):
        layer_pairs(kind, 3, 2, "objectives.hidden.layers")
