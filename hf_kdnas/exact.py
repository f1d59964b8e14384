"""Exact shapes: BERT whose heads keep their size, known to the Auto classes once this module is imported.

`import hf_kdnas.exact` is all it takes for `AutoModel*.from_pretrained` to load such a student without
`trust_remote_code`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers

from hf_kdnas.errors import InvalidInput
from hf_kdnas.modeling_exact_bert import MODELS, ExactBertConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

transformers.AutoConfig.register(ExactBertConfig.model_type, ExactBertConfig)
for _auto, _model in MODELS.items():
    getattr(transformers, _auto).register(ExactBertConfig, _model)

# The exact class of each stock class.
_EXACT = {model.__name__.removeprefix("Exact"): model for model in MODELS.values()}

# What a config says of its own type.
_OF_THE_TYPE = ("model_type", "architectures", "transformers_version")


def exact_config(config: PretrainedConfig) -> ExactBertConfig:
    """The exact config of a stock BERT's config; its heads are of the stock size.

    Raises:
        InvalidInput: If it is not a BERT's, or of a kind that exact shapes don't know.
    """
    if config.model_type != "bert":
        raise InvalidInput(
            "model_type", config.model_type, "exact shapes are those of bert", "Choose a BERT teacher."
        )
    fields = {name: value for name, value in config.to_dict().items() if name not in _OF_THE_TYPE}
    try:
        exact = ExactBertConfig(**fields)
    except ValueError as error:
        raise InvalidInput("config", "bert", "must be a plain encoder's", str(error)) from error
    exact._attn_implementation = config._attn_implementation
    return exact


def as_exact(model: PreTrainedModel) -> PreTrainedModel:
    """A stock BERT as a model of the exact type, with the same weights, function and mode.

    Students of it, `slice_student(as_exact(teacher), architecture)`, may have any head size up to the
    teacher's.

    Args:
        model: A BERT with a head that is among `modeling_exact_bert.MODELS`, or without one.

    Raises:
        InvalidInput: If it is another model.
    """
    exact_class = _EXACT.get(type(model).__name__)
    if exact_class is None:
        raise InvalidInput(
            "model", type(model).__name__, f"must be one of {', '.join(_EXACT)}", "Choose a BERT teacher."
        )
    pooler = {} if getattr(model, "pooler", True) is not None else {"add_pooling_layer": False}
    made: Any = exact_class(exact_config(model.config), **pooler)
    exact: PreTrainedModel = made.to(model.device, model.dtype).train(model.training)
    exact.load_state_dict(model.state_dict())
    return exact
