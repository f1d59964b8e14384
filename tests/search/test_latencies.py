"""Which members are left out unmeasured, because they are predicted to be too slow."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.latency.export import get_exporter
from hf_kdnas.latency.store import LatencyStore
from hf_kdnas.latency.target import LatencyTarget
from hf_kdnas.recipe import ConstraintsSection
from hf_kdnas.search.latencies import ShapeLatencies
from hf_kdnas.space import SearchSpace


@pytest.fixture
def latencies(tmp_path: Path, tiny_bert_config, steady_latency) -> ShapeLatencies:
    return ShapeLatencies(
        config=tiny_bert_config,
        model_class=BertForSequenceClassification,
        target=LatencyTarget(sequence_length=16),
        exporter=get_exporter(),
        store=LatencyStore(tmp_path / "latency"),
    )


@pytest.fixture
def space(tiny_bert_config) -> SearchSpace:
    return SearchSpace.from_teacher(Architecture.from_config(tiny_bert_config))


@pytest.mark.parametrize("constraint", ["speedup", "latency_ms"])
def test_a_prediction_leaves_out_what_it_finds_far_too_slow(
    latencies: ShapeLatencies, space: SearchSpace, constraint: str
) -> None:
    shape = Architecture(2, 24, 3, 48)
    ratio = latencies.predicted(space.members, 0)[shape]
    teacher_ms = latencies(Architecture(3, 32, 4, 64)).median_ms

    def kept(times_too_slow: float) -> bool:
        limit = ratio / times_too_slow
        asked = {"speedup": 1 / limit} if constraint == "speedup" else {"latency_ms": limit * teacher_ms}
        promising = latencies.promising(space.members, ConstraintsSection(**asked), 0)
        reachable = latencies.reachable(space, ConstraintsSection(**asked), 0)
        assert set(reachable) == promising
        return shape in promising

    assert [kept(times) for times in (0.9, 1.25, 1.4)] == [True, True, False]


def test_few_members_are_measured_to_predict_the_others(
    latencies: ShapeLatencies, space: SearchSpace
) -> None:
    latencies.reachable(space, ConstraintsSection(speedup=2.0), 0)
    assert len(latencies.used) == 8 < len(space)


def test_without_a_constraint_on_latency_nothing_is_measured(
    latencies: ShapeLatencies, space: SearchSpace
) -> None:
    assert latencies.reachable(space, ConstraintsSection(retained=0.9), 0) is space
    assert latencies.used == {}


def test_more_than_the_fastest_member_can_do_is_refused(
    latencies: ShapeLatencies, space: SearchSpace
) -> None:
    with pytest.raises(InvalidInput, match=r"search\.constraints\.speedup: got 1000\.0; the fastest"):
        latencies.reachable(space, ConstraintsSection(speedup=1000.0), 0)
    assert len(latencies.used) == 1
