"""The structural maps of ELECTRA: BERT's layers, and embeddings that may be of another width.

A model whose embeddings are as wide as its residual stream has them on it, and so have its students. Any
other has a linear map in between (`embeddings_project`); its students keep the embeddings as they are.
"""

from __future__ import annotations

from hf_kdnas.families.base import Axis, Family
from hf_kdnas.families.bert import LAYER_AXES
from hf_kdnas.families.roberta import CLASSIFIER_AXES


def _axes(embedding: Axis, decoder_units: Axis) -> tuple[tuple[str, tuple[Axis, ...]], ...]:
    """The table, given the axes of the embeddings and of the masked-LM units that are tied to them."""
    return (
        ("embeddings.word_embeddings.weight", ("vocab", embedding)),
        ("embeddings.position_embeddings.weight", ("positions", embedding)),
        ("embeddings.token_type_embeddings.weight", ("fixed", embedding)),
        ("embeddings.LayerNorm.weight", (embedding,)),
        ("embeddings.LayerNorm.bias", (embedding,)),
        ("embeddings_project.weight", ("hidden", embedding)),
        ("embeddings_project.bias", ("hidden",)),
        *LAYER_AXES,
        *CLASSIFIER_AXES,
        ("generator_predictions.dense.weight", (decoder_units, "hidden")),
        ("generator_predictions.dense.bias", (decoder_units,)),
        ("generator_predictions.LayerNorm.weight", (decoder_units,)),
        ("generator_predictions.LayerNorm.bias", (decoder_units,)),
        ("generator_lm_head.weight", ("vocab", decoder_units)),
        ("generator_lm_head.bias", ("vocab",)),
    )


ELECTRA = Family(
    model_types=("electra",),
    axes=_axes("hidden", "decoder_units"),
    other_width=Family(
        model_types=("electra",),
        axes=_axes("embedding", "embedding"),
        embeddings="embeddings_project",
        embeddings_norm=None,
    ),
)
