"""What every family's structural map has to keep; a new family is a line in MODELS."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family
from hf_kdnas.importance import sensitivity
from hf_kdnas.projection import project_student, residual_stream
from hf_kdnas.slicing import parameter_counter, reorder_by_importance, slice_student

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 34,
    "num_labels": 3,
}
ROBERTA_TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}

MODELS = [
    (BertConfig(**SIZES), AutoModelForSequenceClassification),
    (BertConfig(**SIZES), AutoModelForMaskedLM),
    (RobertaConfig(**SIZES, **ROBERTA_TOKENS), AutoModelForSequenceClassification),
    (RobertaConfig(**SIZES, **ROBERTA_TOKENS), AutoModelForMaskedLM),
    (XLMRobertaConfig(**SIZES, **ROBERTA_TOKENS), AutoModelForSequenceClassification),
]
# Heads on every token are alike in all families.
MODELS += [
    (BertConfig(**SIZES), AutoModelForTokenClassification),
    (BertConfig(**SIZES | {"num_labels": 2}), AutoModelForQuestionAnswering),
    (RobertaConfig(**SIZES, **ROBERTA_TOKENS), AutoModelForTokenClassification),
    (RobertaConfig(**SIZES | {"num_labels": 2}, **ROBERTA_TOKENS), AutoModelForQuestionAnswering),
]
NAMES = [f"{config.model_type}-{head.__name__.removeprefix('AutoModelFor')}" for config, head in MODELS]


@pytest.fixture(params=MODELS, ids=NAMES)
def model(request: pytest.FixtureRequest):
    """A model with a head whose every parameter matters (biases and norms included), in float64."""
    config, head = request.param
    torch.manual_seed(0)
    model = head.from_config(copy.deepcopy(config)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def batch(model):
    """Texts of different lengths, with labels of the model's kind."""
    torch.manual_seed(1)
    ids = torch.randint(5, 50, (6, 12))
    mask = (torch.arange(12) < torch.tensor([[12], [9], [7], [12], [3], [5]])).long()
    ids[mask == 0] = model.config.pad_token_id
    inputs = {"input_ids": ids, "attention_mask": mask}
    head = type(model).__name__
    if "QuestionAnswering" in head:
        return inputs | {"start_positions": ids[:, 0] % 3, "end_positions": ids[:, 1] % 3}
    if "TokenClassification" in head:
        return inputs | {"labels": (ids % 3).masked_fill(mask == 0, -100)}
    return inputs | {"labels": ids.clone() if "MaskedLM" in head else torch.tensor([0, 1, 2, 2, 1, 0])}


def test_every_parameter_has_axes_of_its_own_sizes(model) -> None:
    family = get_family(model.config).of(type(model))
    shape = Architecture.from_config(model.config)
    sizes = {
        "hidden": shape.hidden_size,
        "head_units": shape.hidden_size,
        "decoder_units": shape.hidden_size,
        "heads": shape.attention_size,
        "ffn": shape.intermediate_size,
        "vocab": model.config.vocab_size,
        "positions": model.config.max_position_embeddings,
        "labels": model.config.num_labels,
    }
    for name, parameter in model.named_parameters():
        axes = family.parameter_axes(name)
        assert len(axes) == parameter.dim(), name
        for axis, size in zip(axes, parameter.shape, strict=True):
            assert axis == "fixed" or sizes[axis] == size, name


def test_reordering_leaves_the_function_as_it_is(model, batch) -> None:
    with torch.no_grad():
        before = model(**batch)[1]
    importance = sensitivity(model, [batch])
    reorder_by_importance(model, importance)
    with torch.no_grad():
        assert torch.allclose(model(**batch)[1], before, atol=1e-12)
    again = sensitivity(model, [batch])
    for group, scores in again.items():
        if group[0] != "heads":
            assert torch.all(scores.diff() <= 1e-9), group


def test_heads_come_in_order_and_whole(model, batch) -> None:
    reorder_by_importance(model, sensitivity(model, [batch]))
    for group, scores in sensitivity(model, [batch]).items():
        if group[0] == "heads":
            by_head = scores.view(model.config.num_attention_heads, -1)
            assert torch.all(by_head.sum(1).diff() <= 1e-9)
            assert torch.all(by_head.diff(dim=1) <= 1e-9)


def test_a_slice_of_the_whole_is_the_model(model, batch) -> None:
    student = slice_student(model.float(), Architecture.from_config(model.config)).eval()
    with torch.no_grad():
        assert torch.equal(student(**batch)[1], model(**batch)[1])


def test_a_projection_of_the_whole_comes_near_the_model(model, batch) -> None:
    model = model.float()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    stream = residual_stream(model, inputs)
    assert torch.allclose(stream.directions.T @ stream.directions, torch.eye(24), atol=1e-5)
    student = project_student(model, Architecture.from_config(model.config), stream)
    assert type(student) is type(model)
    assert student.config.to_dict().keys() == model.config.to_dict().keys()


@pytest.mark.parametrize(
    "shape",
    [
        Architecture(2, 16, 4, 20),  # smaller heads
        Architecture(2, 12, 2, 40),  # fewer heads
        Architecture(1, 24, 2, 40),  # larger heads: regrouped
        Architecture(3, 24, 6, 8),  # more heads: regrouped
    ],
    ids=str,
)
def test_students_are_stock_models_that_run(model, batch, shape: Architecture) -> None:
    model = model.float()
    reorder_by_importance(model, sensitivity(model, [batch]))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    stream = residual_stream(model, inputs)
    for student in (slice_student(model, shape), project_student(model, shape, stream)):
        assert type(student) is type(model)
        assert Architecture.from_config(student.config) == shape
        assert student.num_parameters() == parameter_counter(type(model), model.config)(shape)
        assert student.config.id2label == model.config.id2label
        assert student(**batch)[1].isfinite().all()


def test_modules_of_the_map_exist(model) -> None:
    family = get_family(model.config)
    for layer in range(1, 4):
        family.module(model, family.layer_output(layer))
        for which in ("query", "key", "value"):
            family.module(model, family.projection(layer, which))
    for path in (family.embeddings, family.embeddings_norm):
        family.module(model, path)


def test_positions_that_no_token_uses_are_taken_off() -> None:
    assert get_family("bert").max_length(BertConfig(**SIZES)) == 34
    assert get_family("roberta").max_length(RobertaConfig(**SIZES, **ROBERTA_TOKENS)) == 32


def test_an_unknown_model_type_names_those_that_are_known() -> None:
    with pytest.raises(InvalidInput, match="bert, roberta, xlm-roberta"):
        get_family("gpt2")
