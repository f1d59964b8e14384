"""Targets: rounded to what a stock config holds, or refused with the nearest that it does."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, BertConfig

import hf_kdnas.exact  # noqa: F401  # a type of ours
from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.homotopic.target import resolve_target

BERT = BertConfig()
MINILM = BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)


@pytest.mark.parametrize(
    ("target", "config", "key"),
    [
        (0.75, BERT, "12L-576H-2304F-12A-gelu"),
        ("0.5", MINILM, "6L-192H-768F-12A-gelu"),
        (224 / 768, BERT, "12L-228H-912F-12A-gelu"),
        (1.0, BERT, "12L-768H-3072F-12A-gelu"),
        (0.001, BERT, "12L-12H-48F-12A-gelu"),
        ("12L-384H-1536F-6A-gelu", BERT, "12L-384H-1536F-6A-gelu"),
        ("4L-224H-896F-8A-gelu", BERT, "4L-224H-896F-8A-gelu"),
    ],
)
def test_a_target_is_a_shape_that_a_stock_config_holds(target, config, key) -> None:
    shape = resolve_target(target, config)
    assert shape.key == key
    assert shape.apply_to(config).hidden_size == shape.hidden_size


@pytest.mark.parametrize(
    ("target", "config", "message"),
    [
        ("12L-224H-896F-12A-gelu", BERT, "nearest that one holds is 12L-228H-896F-12A-gelu"),
        ("0L-192H-768F-12A-gelu", MINILM, "nearest that one holds is 1L-192H-768F-12A-gelu"),
        ("6L-192H-0F-12A-gelu", MINILM, "nearest that one holds is 6L-192H-1F-12A-gelu"),
        ("6L-768H-3072F-12A-gelu", MINILM, "nearest that is left then is 6L-384H-1536F-12A-gelu"),
        ("6L-192H-768F-3A-gelu", MINILM, "nearest that is left then is 6L-192H-768F-6A-gelu"),
        ("12L-192H-768F-12A-gelu", MINILM, "nearest that is left then is 6L-192H-768F-12A-gelu"),
        ("6L-192H-768F-24A-gelu", MINILM, "nearest that is left then is 6L-192H-768F-12A-gelu"),
        ("6L-192H-768F-12A-relu", MINILM, "nearest that is left then is 6L-192H-768F-12A-gelu"),
        ("6L-192H-768F-12A-20D-gelu", MINILM, "of the teacher's type holds"),
        ("small", BERT, "such as 0.5, or the key of a shape"),
        (1.5, BERT, "above 0 and at most 1"),
        ("-1", BERT, "above 0 and at most 1"),
    ],
)
def test_what_can_not_be_had_is_refused_with_the_nearest(target, config, message) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        resolve_target(target, config)
    assert refused.value.field == "homotopic.target"


def test_a_width_that_a_stock_electra_can_not_have_is_passed_over(tiny_config) -> None:
    if tiny_config.model_type == "exact-bert":
        with pytest.raises(InvalidInput, match="heads share the hidden size"):
            resolve_target(0.5, tiny_config)
        return
    shape = resolve_target(0.5, tiny_config)
    shape.apply_to(tiny_config)
    narrow = tiny_config.model_type == "electra" and tiny_config.embedding_size == 16
    assert shape == Architecture(3, 12 if narrow else 16, 4, 24 if narrow else 32)


def test_the_nearest_to_a_refused_shape_is_not_refused() -> None:
    config = AutoConfig.for_model("electra", hidden_size=256, embedding_size=128, num_attention_heads=4)
    with pytest.raises(InvalidInput, match=r"nearest that one holds is (\S+)\.") as refused:
        resolve_target("12L-128H-512F-4A-gelu", config)
    assert resolve_target(str(refused.value).split()[-1].rstrip("."), config).hidden_size == 124
