"""What a family's structural map consists of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

Axis: TypeAlias = Literal[
    "hidden",  # the residual stream
    "embedding",  # embeddings of another width than the residual stream: kept whole
    "head_units",  # inside a task head: as wide as hidden, behind a non-linearity: cut, never rotated
    "decoder_units",  # inside a masked-LM head tied to the embeddings: ordered like hidden
    "heads",  # heads x head size
    "per_head",  # one for each head, outside the layers: heads are in one order in all of them
    "ffn",  # feed-forward neurons
    "vocab",
    "positions",
    "labels",
    "fixed",
]


# Whose outputs a head's logits are, by the ending of its class's name; the first line are those of heads that
# read every token's state straight from the residual stream, alike in all families.
EACH_TOKEN = "each token"
EACH_TEXT = "each text"
OF_HEADS = {
    ("ForTokenClassification", "ForQuestionAnswering"): EACH_TOKEN,
    ("ForMaskedLM", "ForPreTraining", "LMHeadModel"): "the vocabulary",
    ("ForMultipleChoice",): "each choice",
}
TOKEN_HEAD_AXES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    ("classifier.weight", ("labels", "hidden")),
    ("classifier.bias", ("labels",)),
    ("qa_outputs.weight", ("labels", "hidden")),
    ("qa_outputs.bias", ("labels",)),
)


def outputs_of(model_class: type[Any]) -> str:
    """Whose outputs a model's logits are, as a text; `EACH_TEXT` for a head of an unknown name."""
    names = [each.__name__ for each in model_class.__mro__]
    found = (what for endings, what in OF_HEADS.items() if any(name.endswith(endings) for name in names))
    return next(found, EACH_TEXT)


def reads_tokens(model_class: type[Any]) -> bool:
    """Whether a model's outputs are those of each token, (batch, length, labels)."""
    return outputs_of(model_class) == EACH_TOKEN


@dataclass(frozen=True)
class Family:
    """The structural map of a model family: on which axis every parameter dimension lies.

    Module paths are relative to the base model (the encoder); layers are counted from 1, as in the
    papers.

    Attributes:
        model_types: The `config.model_type` values that the map describes.
        axes: Parameter-name endings, each with the axes of its dimensions. The first ending that
            matches counts.
        config_fields: Name of each Architecture field in the family's config; `head_size` only where heads
            may have a size of their own.
        inputs: What the models take of a tokenizer's output.
        embeddings: Module whose output is the residual stream before the first layer,
            (batch, length, hidden).
        embeddings_norm: LayerNorm at the end of the embeddings; None where `embeddings` is a linear map
            from embeddings of another width.
        layers: Module list of the layers.
        attention_dense: Linear inside a layer that reads the heads.
        attention_norm: LayerNorm inside a layer after attention.
        output: Module inside a layer that puts out the layer's hidden state, always a tensor.
        output_dense: Linear inside a layer that reads the feed-forward neurons.
        output_norm: LayerNorm inside a layer after the feed-forward network.
        projections: Linears inside a layer that make query, key and value.
        reserved_positions: Rows of the position embeddings that no token uses (RoBERTa counts from
            the padding index + 1).
        other_width: The map of models whose config has an `embedding_size` other than the hidden size;
            None where configs have no such field.
    """

    model_types: tuple[str, ...]
    axes: tuple[tuple[str, tuple[Axis, ...]], ...]
    config_fields: Mapping[str, str] = field(
        default_factory=lambda: {
            name: name
            for name in (
                "num_hidden_layers",
                "hidden_size",
                "num_attention_heads",
                "intermediate_size",
                "hidden_act",
            )
        }
    )
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")
    embeddings: str = "embeddings"
    embeddings_norm: str | None = "embeddings.LayerNorm"
    layers: str = "encoder.layer"
    attention_dense: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    output: str = "output"
    output_dense: str = "output.dense"
    output_norm: str = "output.LayerNorm"
    projections: Mapping[str, str] = field(
        default_factory=lambda: {name: f"attention.self.{name}" for name in ("query", "key", "value")}
    )
    reserved_positions: int = 0
    other_width: Family | None = None

    @cached_property
    def _endings(self) -> tuple[tuple[re.Pattern[str], tuple[Axis, ...]], ...]:
        return tuple((re.compile(rf"(?:^|.*\.){re.escape(end)}"), axes) for end, axes in self.axes)

    @cached_property
    def _layer_name(self) -> re.Pattern[str]:
        return re.compile(rf"((?:^|.*\.){re.escape(self.layers)}\.)(\d+)(\..+)")

    @cached_property
    def shares_heads(self) -> bool:
        """Whether heads must be in the same order in all layers."""
        return any("per_head" in axes for _, axes in self.axes)

    def of(self, model_class: type[Any]) -> Family:
        """The map for a class of models: a head on every token has names of other heads (`classifier`)."""
        return replace(self, axes=(*TOKEN_HEAD_AXES, *self.axes)) if reads_tokens(model_class) else self

    def parameter_axes(self, name: str) -> tuple[Axis, ...]:
        """The axes of a parameter's dimensions.

        Raises:
            KeyError: If the map doesn't know the parameter: the family's table lacks a line.
        """
        for ending, axes in self._endings:
            if ending.fullmatch(name):
                return axes
        raise KeyError(f"the structural map of {self.model_types[0]} has no line for {name}")

    def layer_of(self, name: str) -> int | None:
        """The layer, from 1, that a parameter belongs to; None outside the layers."""
        match = self._layer_name.fullmatch(name)
        return int(match[2]) + 1 if match else None

    def at_layer(self, name: str, layer: int) -> str:
        """The parameter that plays `name`'s part in another layer, counted from 1."""
        return self._layer_name.sub(rf"\g<1>{layer - 1}\g<3>", name)

    def allows_width(self, config: PretrainedConfig, hidden_size: int) -> bool:
        """Whether a student of a model of this config can have a residual stream of this width.

        A stock model has the map from embeddings to the residual stream only where their widths differ.
        """
        return self.embeddings_norm is not None or hidden_size != config.embedding_size

    def base_model(self, model: nn.Module) -> nn.Module:
        """The encoder inside a model with a task head, or the model itself."""
        base: nn.Module = getattr(model, getattr(model, "base_model_prefix", ""), model)
        return base

    def module(self, model: nn.Module, path: str) -> nn.Module:
        """The module at a path of this map."""
        return self.base_model(model).get_submodule(path)

    def in_layer(self, layer: int, part: str) -> str:
        """Path of a part of a layer, counted from 1."""
        return f"{self.layers}.{layer - 1}.{part}"

    def layer_output(self, layer: int) -> str:
        """Path of the module that puts out the hidden state of a layer, (batch, length, hidden)."""
        return self.in_layer(layer, self.output)

    def projection(self, layer: int, which: str) -> str:
        """Path of the `query`, `key` or `value` linear of a layer: (batch, length, heads x head size)."""
        return self.in_layer(layer, self.projections[which])

    def max_length(self, config: PretrainedConfig) -> int:
        """Most tokens that a sequence may have."""
        return int(config.max_position_embeddings) - self.reserved_positions
