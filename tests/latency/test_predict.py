from __future__ import annotations

import random

import pytest

from hf_kdnas.architecture import Architecture
from hf_kdnas.latency.predict import LatencyPredictor
from hf_kdnas.latency.target import LatencyTarget
from hf_kdnas.space import SearchSpace

TARGET = LatencyTarget(sequence_length=64)


def cost(shape: Architecture) -> float:
    """A machine of 20 GFLOP/s with an overhead per layer and per run, in milliseconds."""
    return shape.flops(TARGET.sequence_length) / 20e6 + 0.05 * shape.num_hidden_layers + 0.1


@pytest.fixture
def shapes() -> list[Architecture]:
    return random.Random(0).sample(list(SearchSpace.preset("kd_nas", None)), 40)


def test_a_cost_that_is_a_sum_of_operations_is_learnt(shapes: list[Architecture]) -> None:
    predictor = LatencyPredictor(TARGET).fit([(shape, cost(shape)) for shape in shapes[:12]])
    for shape in shapes[12:]:
        assert predictor.predict(shape) == pytest.approx(cost(shape), rel=0.03)
    assert predictor.error < 0.03


def test_the_error_tells_how_noisy_the_measurements_were(shapes: list[Architecture]) -> None:
    rng = random.Random(1)
    measured = [(shape, cost(shape) * rng.choice((0.7, 1.4))) for shape in shapes[:20]]
    assert 0.2 < LatencyPredictor(TARGET).fit(measured).error < 0.8


def test_a_larger_shape_is_never_predicted_to_be_faster(shapes: list[Architecture]) -> None:
    rng = random.Random(2)
    predictor = LatencyPredictor(TARGET).fit([(shape, rng.uniform(1, 10)) for shape in shapes])
    small = Architecture(2, 96, 4, 256)
    for larger in (
        Architecture(3, 96, 4, 256),
        Architecture(2, 192, 4, 256),
        Architecture(2, 96, 4, 512),
        Architecture(2, 96, 8, 256),
    ):
        assert predictor.predict(larger) >= predictor.predict(small)


def test_predicting_before_fitting_is_an_error() -> None:
    predictor = LatencyPredictor(TARGET)
    with pytest.raises(RuntimeError, match="fit"):
        predictor.predict(Architecture(1, 32, 4, 64))
    with pytest.raises(RuntimeError, match="fit"):
        _ = predictor.error
    with pytest.raises(ValueError, match="at least one"):
        predictor.fit([])
