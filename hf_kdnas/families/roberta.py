"""The structural map of RoBERTa and XLM-R: BERT's layers, other positions and other heads."""

from __future__ import annotations

from hf_kdnas.families.base import Axis, Family
from hf_kdnas.families.bert import EMBEDDING_AXES, LAYER_AXES, POOLER_AXES

CLASSIFIER_AXES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    ("classifier.dense.weight", ("head_units", "hidden")),
    ("classifier.dense.bias", ("head_units",)),
    ("classifier.out_proj.weight", ("labels", "head_units")),
    ("classifier.out_proj.bias", ("labels",)),
)

LM_HEAD_AXES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    ("lm_head.dense.weight", ("decoder_units", "hidden")),
    ("lm_head.dense.bias", ("decoder_units",)),
    ("lm_head.layer_norm.weight", ("decoder_units",)),
    ("lm_head.layer_norm.bias", ("decoder_units",)),
    ("lm_head.decoder.weight", ("vocab", "decoder_units")),
    ("lm_head.decoder.bias", ("vocab",)),
    ("lm_head.bias", ("vocab",)),
)

ROBERTA = Family(
    model_types=("roberta", "xlm-roberta"),
    axes=(
        *EMBEDDING_AXES,
        *LAYER_AXES,
        *POOLER_AXES,
        *CLASSIFIER_AXES,
        *LM_HEAD_AXES,
    ),
    reserved_positions=2,
)
