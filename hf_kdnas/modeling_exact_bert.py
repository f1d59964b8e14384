# mypy: disable-error-code=no-untyped-call
"""BERT with attention of a width of its own: heads x head size, whatever the hidden size is.

A stock BERT's heads share its hidden size among them. AutoDistil's subnets (arXiv 2201.12507) keep heads of
64 units at any hidden size and head count, which no stock config can hold. These are the stock classes with
other query, key, value and attention-output maps, and nothing else: where `head_size` is hidden size / heads
they are stock models.

`save_pretrained` puts this file beside the weights, for `trust_remote_code=True`; so it imports nothing but
torch and transformers.
"""

from __future__ import annotations

import os
from typing import Any

from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)


class ExactBertConfig(BertConfig):
    """A BertConfig with a head size.

    Args:
        head_size: Units per head; None means hidden size / heads, as in a stock BERT.
        **kwargs: As for a BertConfig.

    Raises:
        ValueError: If the head size is not positive or can't be told, or the config asks for what goes with
            stock heads alone: cross-attention, relative positions.
    """

    model_type = "exact-bert"
    # Optimum exports it as this: graphs of the two differ in widths alone.
    export_model_type = "bert"

    def __init__(self, head_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.head_size = head_size
        self.check()

    @property
    def attention_head_size(self) -> int:
        """Units per head, also where `head_size` leaves it to the stock rule."""
        return int(self.head_size or self.hidden_size // self.num_attention_heads)

    @property
    def embedding_size(self) -> int:
        """Width of the embeddings: only a config that has one may have heads that don't divide the width."""
        return int(self.hidden_size)

    def check(self) -> None:
        """See that a model can be made of it.

        Raises:
            ValueError: Naming the field, what was given, what is allowed and what to do.
        """
        hidden, heads, size = self.hidden_size, self.num_attention_heads, self.head_size
        positions = getattr(self, "position_embedding_type", "absolute")
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(f"head_size: got {size!r}; must be a positive whole number. Change it.")
        if size is None and hidden % heads:
            raise ValueError(
                f"head_size: got None; {heads} heads don't divide hidden_size {hidden}. Set head_size."
            )
        if self.add_cross_attention:
            raise ValueError("add_cross_attention: got True; there is self-attention alone. Set it to False.")
        if positions != "absolute":
            raise ValueError(f"position_embedding_type: got {positions!r}; must be 'absolute'. Change it.")

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save the config and this file, so that any head loads with `trust_remote_code=True`."""
        module = __name__.rpartition(".")[2]
        self.auto_map = {auto: f"{module}.{model.__name__}" for auto, model in MODELS.items()}
        super().save_pretrained(save_directory, *args, **kwargs)


class ExactBertModel(BertModel):
    """BertModel with attention of heads x head size units."""

    config_class = ExactBertConfig

    def __init__(self, config: ExactBertConfig, add_pooling_layer: bool = True) -> None:
        config.check()  # its fields may have been set since it was made
        super().__init__(config, add_pooling_layer)
        size = config.attention_head_size
        width = config.num_attention_heads * size
        layers: Any = self.encoder.layer
        for layer in layers:
            attention = layer.attention.self
            attention.attention_head_size, attention.all_head_size = size, width
            attention.scaling = size**-0.5  # read from Transformers 5 on
            for name in ("query", "key", "value"):
                setattr(attention, name, nn.Linear(config.hidden_size, width))
            layer.attention.output.dense = nn.Linear(width, config.hidden_size)
        self.post_init()


class _Head:
    """Puts the encoder with its own attention into a stock model with a head."""

    bert: Any

    def __init__(self, config: ExactBertConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # a stock model's
        self.bert = ExactBertModel(config, add_pooling_layer=self.bert.pooler is not None)
        self.post_init()  # type: ignore[attr-defined]  # a stock model's


class ExactBertForMaskedLM(_Head, BertForMaskedLM):
    """BertForMaskedLM with attention of heads x head size units."""

    config_class = ExactBertConfig


class ExactBertForSequenceClassification(_Head, BertForSequenceClassification):
    """BertForSequenceClassification with attention of heads x head size units."""

    config_class = ExactBertConfig


class ExactBertForTokenClassification(_Head, BertForTokenClassification):
    """BertForTokenClassification with attention of heads x head size units."""

    config_class = ExactBertConfig


class ExactBertForQuestionAnswering(_Head, BertForQuestionAnswering):
    """BertForQuestionAnswering with attention of heads x head size units."""

    config_class = ExactBertConfig


# By the name of the Auto class that loads it.
MODELS = {
    "AutoModel": ExactBertModel,
    "AutoModelForMaskedLM": ExactBertForMaskedLM,
    "AutoModelForSequenceClassification": ExactBertForSequenceClassification,
    "AutoModelForTokenClassification": ExactBertForTokenClassification,
    "AutoModelForQuestionAnswering": ExactBertForQuestionAnswering,
}

ExactBertConfig.register_for_auto_class()
