"""The structural map of DistilBERT: BERT's layers and config under names of its own, and no token types."""

from __future__ import annotations

from hf_kdnas.families.base import Family
from hf_kdnas.families.bert import EMBEDDING_AXES

DISTILBERT = Family(
    model_types=("distilbert",),
    axes=(
        *EMBEDDING_AXES,
        ("attention.q_lin.weight", ("heads", "hidden")),
        ("attention.q_lin.bias", ("heads",)),
        ("attention.k_lin.weight", ("heads", "hidden")),
        ("attention.k_lin.bias", ("heads",)),
        ("attention.v_lin.weight", ("heads", "hidden")),
        ("attention.v_lin.bias", ("heads",)),
        ("attention.out_lin.weight", ("hidden", "heads")),
        ("attention.out_lin.bias", ("hidden",)),
        ("sa_layer_norm.weight", ("hidden",)),
        ("sa_layer_norm.bias", ("hidden",)),
        ("ffn.lin1.weight", ("ffn", "hidden")),
        ("ffn.lin1.bias", ("ffn",)),
        ("ffn.lin2.weight", ("hidden", "ffn")),
        ("ffn.lin2.bias", ("hidden",)),
        ("output_layer_norm.weight", ("hidden",)),
        ("output_layer_norm.bias", ("hidden",)),
        ("pre_classifier.weight", ("head_units", "hidden")),
        ("pre_classifier.bias", ("head_units",)),
        ("classifier.weight", ("labels", "head_units")),
        ("classifier.bias", ("labels",)),
        ("vocab_transform.weight", ("decoder_units", "hidden")),
        ("vocab_transform.bias", ("decoder_units",)),
        ("vocab_layer_norm.weight", ("decoder_units",)),
        ("vocab_layer_norm.bias", ("decoder_units",)),
        ("vocab_projector.weight", ("vocab", "decoder_units")),
        ("vocab_projector.bias", ("vocab",)),
    ),
    # Its config takes any other name without a word, and no module reads it.
    config_fields={
        "num_hidden_layers": "n_layers",
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
    inputs=("input_ids", "attention_mask"),
    layers="transformer.layer",
    attention_dense="attention.out_lin",
    attention_norm="sa_layer_norm",
    output="output_layer_norm",
    output_dense="ffn.lin2",
    output_norm="output_layer_norm",
    projections={"query": "attention.q_lin", "key": "attention.k_lin", "value": "attention.v_lin"},
)
