"""The structural map of BERT."""

from __future__ import annotations

from hf_kdnas.families.base import Axis, Family

EMBEDDING_AXES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    ("embeddings.word_embeddings.weight", ("vocab", "hidden")),
    ("embeddings.position_embeddings.weight", ("positions", "hidden")),
    ("embeddings.token_type_embeddings.weight", ("fixed", "hidden")),
    ("embeddings.LayerNorm.weight", ("hidden",)),
    ("embeddings.LayerNorm.bias", ("hidden",)),
)

FEED_FORWARD_AXES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    ("intermediate.dense.weight", ("ffn", "hidden")),
    ("intermediate.dense.bias", ("ffn",)),
    ("output.dense.weight", ("hidden", "ffn")),
    ("output.dense.bias", ("hidden",)),
    ("output.LayerNorm.weight", ("hidden",)),
    ("output.LayerNorm.bias", ("hidden",)),
)

LAYER_AXES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    ("attention.self.query.weight", ("heads", "hidden")),
    ("attention.self.query.bias", ("heads",)),
    ("attention.self.key.weight", ("heads", "hidden")),
    ("attention.self.key.bias", ("heads",)),
    ("attention.self.value.weight", ("heads", "hidden")),
    ("attention.self.value.bias", ("heads",)),
    ("attention.output.dense.weight", ("hidden", "heads")),
    ("attention.output.dense.bias", ("hidden",)),
    ("attention.output.LayerNorm.weight", ("hidden",)),
    ("attention.output.LayerNorm.bias", ("hidden",)),
    *FEED_FORWARD_AXES,
)

POOLER_AXES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    ("pooler.dense.weight", ("head_units", "hidden")),
    ("pooler.dense.bias", ("head_units",)),
)

BERT = Family(
    model_types=("bert",),
    axes=(
        *EMBEDDING_AXES,
        *LAYER_AXES,
        *POOLER_AXES,
        ("classifier.weight", ("labels", "head_units")),
        ("classifier.bias", ("labels",)),
        ("cls.predictions.transform.dense.weight", ("decoder_units", "hidden")),
        ("cls.predictions.transform.dense.bias", ("decoder_units",)),
        ("cls.predictions.transform.LayerNorm.weight", ("decoder_units",)),
        ("cls.predictions.transform.LayerNorm.bias", ("decoder_units",)),
        ("cls.predictions.decoder.weight", ("vocab", "decoder_units")),
        ("cls.predictions.decoder.bias", ("vocab",)),
        ("cls.predictions.bias", ("vocab",)),
    ),
)
