from __future__ import annotations

import math

import pytest
from transformers import BertConfig

from hf_kdnas.architecture import Architecture, autodistil_flops, autodistil_parameters
from hf_kdnas.errors import InvalidInput
from hf_kdnas.space import SearchSpace

# AutoDistil's winners and BERT-base, as printed in its tables: GFLOPs and million parameters.
PRINTED = {
    "12L-544H-1632F-9A-64D-gelu": ("4.40", "50.1"),
    "11L-352H-1408F-8A-gelu": ("2.02", "26.1"),
    "11L-352H-1408F-10A-64D-gelu": ("2.13", "26.8"),
    "7L-160H-560F-10A-gelu": ("0.27", "6.88"),
    "12L-768H-3072F-12A-gelu": ("11.2", "109"),
}

# Its sub-spaces: million parameters, from and to.
RANGES = {"tiny": ("4", "10"), "small": ("12", "28"), "base": ("39", "79")}


def is_printed_as(value: float, printed: str) -> bool:
    """The paper rounds some figures (26.77 to 26.8) and cuts others (6.888 to 6.88)."""
    digits = len(printed.partition(".")[2])
    cut = math.floor(value * 10**digits) / 10**digits
    return printed in (f"{value:.{digits}f}", f"{cut:.{digits}f}")


@pytest.mark.parametrize(("key", "printed"), PRINTED.items())
def test_cost_model_gives_the_printed_figures(key: str, printed: tuple[str, str]) -> None:
    architecture = Architecture.parse(key)
    assert is_printed_as(autodistil_flops(architecture) / 1e9, printed[0])
    assert is_printed_as(autodistil_parameters(architecture) / 1e6, printed[1])


@pytest.mark.parametrize(("name", "printed"), RANGES.items())
def test_cost_model_gives_the_printed_ranges(name: str, printed: tuple[str, str]) -> None:
    space = SearchSpace.preset(f"autodistil-{name}")
    parameters = [autodistil_parameters(member) / 1e6 for member in space]
    assert is_printed_as(min(parameters), printed[0])
    assert is_printed_as(max(parameters), printed[1])


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [("tiny", 68.5, 521.3), ("small", 637.5, 2319.8), ("base", 2970.8, 7853.8)],
)
def test_flop_ranges_are_those_of_the_formula_not_the_printed_ones(
    name: str, lowest: float, highest: float
) -> None:
    """The paper prints 40 to 367 M, 0.5 to 2.1 G and 2.1 to 7.9 G."""
    flops = [autodistil_flops(member) / 1e6 for member in SearchSpace.preset(f"autodistil-{name}")]
    assert [min(flops), max(flops)] == pytest.approx([lowest, highest], abs=0.05)


def test_key_is_read_back() -> None:
    for key in ("4L-576H-768F-12A-gelu", "11L-352H-1408F-10A-64D-relu"):
        assert Architecture.parse(key).key == key


@pytest.mark.parametrize("text", ["4-576-768-12", "4L-576H-768F-12A", "", "xL-1H-1F-1A-gelu"])
def test_other_text_is_not_a_key(text: str) -> None:
    with pytest.raises(InvalidInput, match="4L-576H-768F-12A-gelu"):
        Architecture.parse(text)


def test_heads_that_do_not_divide_the_width_need_their_own_size() -> None:
    with pytest.raises(InvalidInput, match="num_attention_heads: got 9"):
        Architecture(12, 544, 9, 1632)
    assert Architecture(12, 544, 9, 1632, head_size=64).attention_size == 576


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "intermediate_size"])
def test_sizes_are_positive(field: str) -> None:
    fields = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    with pytest.raises(InvalidInput, match=field):
        Architecture(**{**fields, field: 0})


def test_order_is_by_fields_and_takes_missing_head_sizes() -> None:
    small, large = Architecture(2, 64, 4, 128), Architecture(2, 64, 4, 128, head_size=32)
    assert sorted([large, small]) == [small, large]
    assert Architecture(1, 512, 8, 2048) < small


def test_applying_keeps_everything_but_the_shape(tiny_bert_config: BertConfig) -> None:
    tiny_bert_config.id2label = {0: "rotten", 1: "fresh"}
    config = Architecture(2, 16, 2, 24, "relu").apply_to(tiny_bert_config)
    assert Architecture.from_config(config) == Architecture(2, 16, 2, 24, "relu")
    assert config.id2label == {0: "rotten", 1: "fresh"}
    assert config.vocab_size == tiny_bert_config.vocab_size
    assert tiny_bert_config.num_hidden_layers == 3


def test_a_stock_config_refuses_other_head_sizes(tiny_bert_config: BertConfig) -> None:
    with pytest.raises(InvalidInput, match="head_size"):
        Architecture(2, 32, 2, 64, head_size=8).apply_to(tiny_bert_config)


def test_flops_count_every_product() -> None:
    # 4 projections of 8 x 8, scores and their weighting, two feed-forward maps; 3 tokens, 2 layers.
    assert Architecture(2, 8, 2, 16).flops(3) == 2 * (4 * 3 * 64 + 2 * 9 * 8 + 2 * 3 * 8 * 16)
