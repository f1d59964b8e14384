"""The structural map of BERT with a head size of its own (`hf_kdnas.modeling_exact_bert`)."""

from __future__ import annotations

from dataclasses import replace

from hf_kdnas.families.bert import BERT

EXACT_BERT = replace(
    BERT, model_types=("exact-bert",), config_fields={**BERT.config_fields, "head_size": "head_size"}
)
