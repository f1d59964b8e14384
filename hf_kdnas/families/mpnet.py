"""The structural map of MPNet: RoBERTa's positions and heads, and one position bias for all layers."""

from __future__ import annotations

from hf_kdnas.families.base import Family
from hf_kdnas.families.bert import EMBEDDING_AXES, FEED_FORWARD_AXES, POOLER_AXES
from hf_kdnas.families.roberta import CLASSIFIER_AXES, LM_HEAD_AXES

MPNET = Family(
    model_types=("mpnet",),
    axes=(
        *EMBEDDING_AXES,
        ("encoder.relative_attention_bias.weight", ("fixed", "per_head")),
        ("attention.attn.q.weight", ("heads", "hidden")),
        ("attention.attn.q.bias", ("heads",)),
        ("attention.attn.k.weight", ("heads", "hidden")),
        ("attention.attn.k.bias", ("heads",)),
        ("attention.attn.v.weight", ("heads", "hidden")),
        ("attention.attn.v.bias", ("heads",)),
        ("attention.attn.o.weight", ("hidden", "heads")),
        ("attention.attn.o.bias", ("hidden",)),
        ("attention.LayerNorm.weight", ("hidden",)),
        ("attention.LayerNorm.bias", ("hidden",)),
        *FEED_FORWARD_AXES,
        *POOLER_AXES,
        *CLASSIFIER_AXES,
        *LM_HEAD_AXES,
    ),
    inputs=("input_ids", "attention_mask"),
    attention_dense="attention.attn.o",
    attention_norm="attention.LayerNorm",
    projections={"query": "attention.attn.q", "key": "attention.attn.k", "value": "attention.attn.v"},
    reserved_positions=2,
)
