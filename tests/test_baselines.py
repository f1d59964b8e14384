"""Hand-crafted shapes."""

from __future__ import annotations

import pytest

from hf_kdnas.architecture import Architecture
from hf_kdnas.baselines import BASELINES, baseline_architecture
from hf_kdnas.errors import InvalidInput

TEACHER = Architecture(12, 768, 12, 3072, "relu")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("every-second-layer", "6L-768H-3072F-12A-relu"),
        ("tinybert", "4L-312H-1200F-12A-relu"),
        ("minilm-3", "3L-384H-1536F-12A-relu"),
        ("2L-64H-128F-2A-silu", "2L-64H-128F-2A-silu"),
    ],
)
def test_shapes(name: str, key: str) -> None:
    assert baseline_architecture(name, TEACHER).key == key


def test_every_name_has_a_shape() -> None:
    assert (
        len({baseline_architecture(name, TEACHER) for name in BASELINES}) == len(BASELINES) - 1
    )  # distilbert


def test_half_of_an_odd_number_of_layers_is_rounded_up() -> None:
    assert baseline_architecture("every-second-layer", Architecture(3, 32, 4, 64)).num_hidden_layers == 2


def test_other_names_are_refused() -> None:
    with pytest.raises(InvalidInput, match="nobert"):
        baseline_architecture("nobert", TEACHER)
