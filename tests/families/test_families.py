"""What every family's structural map has to keep, on the tiny models of conftest, with each head."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
)

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import FAMILIES, get_family
from hf_kdnas.importance import sensitivity
from hf_kdnas.projection import project_student, residual_stream
from hf_kdnas.slicing import parameter_counter, reorder_by_importance, slice_student

HEADS = {
    "sequence": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "answers": AutoModelForQuestionAnswering,
    "words": AutoModelForMaskedLM,
}


@pytest.fixture(params=HEADS)
def model(request: pytest.FixtureRequest, tiny_config):
    """A model with a head whose every parameter matters (biases and norms included), in float64."""
    tiny_config.num_labels = 2 if request.param == "answers" else 3
    torch.manual_seed(0)
    model = HEADS[request.param].from_config(tiny_config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def batch(model):
    """Texts of different lengths, with labels of the model's kind."""
    torch.manual_seed(1)
    ids = torch.randint(5, 120, (6, 12))
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
        "per_head": shape.num_attention_heads,
        "embedding": getattr(model.config, "embedding_size", None),
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
        if group[0] not in ("heads", "per_head"):
            assert torch.all(scores.diff() <= 1e-9), group


def test_heads_come_in_order_and_whole(model, batch) -> None:
    reorder_by_importance(model, sensitivity(model, [batch]))
    scores = sensitivity(model, [batch])
    by_head = [each.view(4, -1) for (name, _), each in scores.items() if name in ("heads", "per_head")]
    totals = [each.sum(1) for each in by_head]
    if get_family(model.config).shares_heads:
        totals = [sum(totals)]
    assert len(totals) in (1, 3)
    for each in totals:
        assert torch.all(each.diff() <= 1e-9)
    for each in by_head:
        assert torch.all(each.diff(dim=1) <= 1e-9)


def test_a_slice_of_the_whole_is_the_model(model, batch) -> None:
    student = slice_student(model.float(), Architecture.from_config(model.config)).eval()
    with torch.no_grad():
        assert torch.equal(student(**batch)[1], model(**batch)[1])


def test_a_projection_of_the_whole_comes_near_the_model(model, batch) -> None:
    model = model.float()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    stream = residual_stream(model, inputs)
    assert torch.allclose(stream.directions.T @ stream.directions, torch.eye(32), atol=1e-5)
    student = project_student(model, Architecture.from_config(model.config), stream).eval()
    assert type(student) is type(model)
    assert student.config.to_dict().keys() == model.config.to_dict().keys()
    with torch.no_grad():
        wanted, found = (
            each.base_model(**inputs).last_hidden_state[inputs["attention_mask"].bool()]
            for each in (model, student)
        )
    wanted = wanted @ stream.directions
    assert (found - wanted).square().mean() < 0.05 * wanted.var()


@pytest.mark.parametrize(
    "shape",
    [
        Architecture(2, 24, 4, 20),  # smaller heads
        Architecture(2, 24, 3, 40),  # fewer heads
        Architecture(1, 32, 2, 40),  # larger heads: regrouped
        Architecture(3, 32, 8, 8),  # more heads: regrouped
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


def test_models_take_the_inputs_of_the_map(model, batch) -> None:
    family = get_family(model.config)
    typed = batch | {"token_type_ids": torch.zeros_like(batch["input_ids"])}
    model(**{name: typed[name] for name in family.inputs})
    assert ("token_type_ids" in family.inputs) == hasattr(
        family.base_model(model).embeddings, "token_type_embeddings"
    )


def test_texts_have_at_most_as_many_tokens_as_the_model_has_positions_for(model) -> None:
    most = get_family(model.config).max_length(model.config)
    assert most == 64
    ids = torch.full((1, most + 1), 7)
    model(ids[:, :most])
    with pytest.raises((IndexError, RuntimeError)):
        model(ids)


def test_every_family_has_a_tiny_model(tiny_families: set[str]) -> None:
    assert tiny_families == FAMILIES.keys()


def test_an_unknown_model_type_names_those_that_are_known_and_how_to_add_it() -> None:
    with pytest.raises(
        InvalidInput, match="bert, distilbert, electra, exact-bert, mpnet, roberta, xlm-roberta"
    ) as error:
        get_family("gpt2")
    assert "docs/adding-a-family.md" in str(error.value)


@pytest.fixture
def narrow_electra() -> ElectraConfig:
    """An ELECTRA whose embeddings are half as wide as its residual stream."""
    return ElectraConfig(
        vocab_size=120,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
    )


def test_a_student_just_as_wide_as_its_embeddings_has_no_map_from_them(narrow_electra) -> None:
    with pytest.raises(InvalidInput, match=r"hidden_size: got 16; .* has no map from them"):
        Architecture(2, 16, 2, 64).apply_to(narrow_electra)
    for width in (8, 24):
        assert Architecture(2, width, 2, 64).apply_to(narrow_electra).embedding_size == 16


def test_embeddings_that_lie_on_the_residual_stream_stay_there(narrow_electra) -> None:
    narrow_electra.embedding_size = 32
    assert Architecture(2, 16, 2, 64).apply_to(narrow_electra).embedding_size == 16


def test_the_map_from_embeddings_is_turned_exactly(narrow_electra) -> None:
    """What enters the first layer is the teacher's, along the student's directions."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(narrow_electra).eval()
    ids = torch.randint(5, 120, (8, 12))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    stream = residual_stream(model, inputs)
    student = project_student(model, Architecture(2, 24, 3, 64), stream).eval()
    with torch.no_grad():
        wanted, found = (
            each.electra(**inputs, output_hidden_states=True).hidden_states[0] for each in (model, student)
        )
    torch.testing.assert_close(found, wanted @ stream.projection(24), atol=1e-5, rtol=1e-4)


def test_heads_that_are_cut_keep_their_position_bias() -> None:
    config = MPNetConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = AutoModelForSequenceClassification.from_config(config)
    bias = model.mpnet.encoder.relative_attention_bias.weight
    for shape, heads in (
        (Architecture(2, 24, 3, 64), [0, 1, 2]),
        (Architecture(2, 16, 4, 64), [0, 1, 2, 3]),
        (Architecture(2, 32, 2, 64), [0, 2]),  # two of the teacher's heads in each
        (Architecture(2, 32, 8, 64), [0, 0, 1, 1, 2, 2, 3, 3]),  # half of one
    ):
        student = slice_student(model, shape)
        assert torch.equal(student.mpnet.encoder.relative_attention_bias.weight, bias[:, heads])


def test_distilberts_shape_stands_under_its_own_names() -> None:
    shape = Architecture(2, 24, 3, 40, "relu")
    config = shape.apply_to(DistilBertConfig())
    found = (config.n_layers, config.dim, config.n_heads, config.hidden_dim, config.activation)
    assert found == (2, 24, 3, 40, "relu")
    assert Architecture.from_config(config) == shape
    assert "intermediate_size" not in config.to_dict()
    ffn = AutoModelForSequenceClassification.from_config(config).distilbert.transformer.layer[0].ffn
    assert ffn.lin1.out_features == 40
    assert ffn.activation(torch.tensor(-1.0)) == 0
