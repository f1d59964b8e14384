"""The cubic schedule, and the shapes on the way."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.homotopic.schedule import compaction_steps, plan_segments, pruned_part

BERT = BertConfig()
TARGET = Architecture(12, 576, 12, 2304)


def kept(step: float, final: float) -> float:
    return 1 - (1 - final) * pruned_part(step, 100, 800)


def test_the_kept_fraction_is_the_papers() -> None:
    for final in (0.5, 0.75):
        assert kept(0, final) == kept(100, final) == 1
        assert kept(450, final) == pytest.approx(final + (1 - final) * 0.5**3)
        assert kept(800, final) == kept(1000, final) == final


def test_each_compaction_removes_as_much_as_any_other() -> None:
    steps = compaction_steps(100, 10_000, 8)
    assert len(steps) == 8
    assert steps[-1] == 10_000
    parts = [pruned_part(step, 100, 10_000) for step in steps]
    assert parts == pytest.approx([number / 8 for number in range(1, 9)], abs=1e-3)


def test_segments_lead_from_the_teacher_to_the_target() -> None:
    segments = plan_segments(BERT, TARGET, 1000)
    assert [each.shape.hidden_size for each in segments] == [768, 744, 720, 696, 672, 648, 624, 600, 576]
    assert segments[0].start == 0
    assert segments[0].shape == Architecture.from_config(BERT)
    assert (segments[-1].start, segments[-1].end, segments[-1].shape) == (700, 1000, TARGET)
    assert {each.shape.num_attention_heads for each in segments} == {12}


def test_heads_of_one_size_go_as_wholes() -> None:
    segments = plan_segments(BERT, Architecture(12, 384, 6, 1536), 1000, compactions=6)
    assert [each.shape.num_attention_heads for each in segments] == [12, 11, 10, 9, 8, 7, 6]
    assert {each.shape.attention_head_size for each in segments} == {64}


def test_layers_are_left_out_from_the_start() -> None:
    segments = plan_segments(BERT, Architecture(4, 576, 12, 2304), 1000)
    assert {each.shape.num_hidden_layers for each in segments} == {4}
    assert segments[0].shape.hidden_size == 768


def test_no_cut_falls_before_anything_is_to_be_removed() -> None:
    options = {"start": 0.5, "end": 0.6, "compactions": 4}
    segments = plan_segments(BERT, TARGET, 100, **options)
    assert [each.end for each in segments] == [51, 52, 54, 60, 100]
    with pytest.raises(InvalidInput, match="compactions"):
        plan_segments(BERT, TARGET, 50, **options)


def test_compactions_that_would_remove_nothing_are_left_out() -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    segments = plan_segments(config, Architecture(3, 24, 4, 64), 100)
    assert [each.shape.hidden_size for each in segments] == [32, 28, 24]
    assert plan_segments(config, Architecture.from_config(config), 100)[0].end == 100


@given(
    heads=st.integers(1, 12),
    size=st.integers(1, 64),
    neurons=st.integers(1, 3072),
    steps=st.integers(60, 5000),
    compactions=st.integers(1, 12),
)
def test_every_segment_is_a_stock_shape_narrower_than_the_last(
    heads, size, neurons, steps, compactions
) -> None:
    target = Architecture(12, heads * size, heads, neurons)
    segments = plan_segments(BERT, target, steps, compactions=compactions)
    assert segments[-1].shape == target
    assert segments[0].start == 0
    assert segments[-1].end == steps
    for left, right in pairwise(segments):
        assert left.start < left.end == right.start
        assert right.shape.fits_into(left.shape)
        assert right.shape.num_attention_heads <= left.shape.num_attention_heads
        assert right.shape.attention_head_size <= left.shape.attention_head_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 1.0}, "homotopic.end: got 1.0; must .*leave some of the training"),
        ({"start": 0.8}, "homotopic.end: got 0.7; must be behind homotopic.start, 0.8"),
        ({"compactions": 71}, "homotopic.compactions: got 71; the training has 70 steps"),
        ({"compactions": 8, "end": 0.08}, "got 8; the training has 8 steps .* would fall on one step"),
        ({"start": 0.986, "end": 0.989, "compactions": 1}, "got 1; the training has 0 steps .*max_steps"),
        ({"start": 0.699}, "homotopic.compactions: got 8; the training has 0 steps"),
    ],
)
def test_schedules_that_can_not_be_kept_are_refused(options, message) -> None:
    with pytest.raises(InvalidInput, match=message):
        plan_segments(BERT, TARGET, 100, **options)
