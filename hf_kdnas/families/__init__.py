"""Structural maps: one small file for each model family.

A new family is one `Family` table, an entry in `FAMILIES` and a line in `tests/conftest.py`:
docs/adding-a-family.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_kdnas.errors import InvalidInput
from hf_kdnas.families.base import EACH_TEXT, EACH_TOKEN, Axis, Family, outputs_of, reads_tokens
from hf_kdnas.families.bert import BERT
from hf_kdnas.families.distilbert import DISTILBERT
from hf_kdnas.families.electra import ELECTRA
from hf_kdnas.families.exact_bert import EXACT_BERT
from hf_kdnas.families.mpnet import MPNET
from hf_kdnas.families.roberta import ROBERTA

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "EACH_TEXT",
    "EACH_TOKEN",
    "FAMILIES",
    "Axis",
    "Family",
    "get_family",
    "outputs_of",
    "reads_segments",
    "reads_tokens",
]

FAMILIES: dict[str, Family] = {
    model_type: family
    for family in (BERT, ROBERTA, MPNET, ELECTRA, DISTILBERT, EXACT_BERT)
    for model_type in family.model_types
}


def get_family(config: PretrainedConfig | str) -> Family:
    """The structural map of a model, given its config or its `model_type`.

    Raises:
        InvalidInput: If there is no map for the model type.
    """
    model_type = config if isinstance(config, str) else config.model_type
    if model_type not in FAMILIES:
        raise InvalidInput(
            "model_type",
            model_type,
            f"known families are {', '.join(sorted(FAMILIES))}",
            "Choose a teacher of one of these, or add a family: docs/adding-a-family.md says how.",
        )
    family = FAMILIES[model_type]
    if family.other_width is None or isinstance(config, str) or config.embedding_size == config.hidden_size:
        return family
    return family.other_width


def reads_segments(config: PretrainedConfig) -> bool:
    """Whether a model takes `token_type_ids`."""
    return "token_type_ids" in get_family(config).inputs
