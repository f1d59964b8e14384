"""Captured signals against what Transformers itself puts out."""

from __future__ import annotations

import pytest
import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.capture import Capture, forward_signals, signal_width
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family

NAMES = [f"hidden.{k}" for k in range(4)] + [
    f"{part}.{k}" for part in ("query", "key", "value") for k in (1, 3)
]


@pytest.fixture
def model(tiny_config, make_model):
    return make_model(tiny_config)


@pytest.fixture
def batch():
    ids = torch.tensor([[2, 8, 9, 10, 3], [2, 11, 3, 1, 1]])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}


def test_hidden_states_and_logits_are_the_models_own(model, batch):
    signals = forward_signals(model, Capture(model, [*NAMES, "logits"]), batch)
    output = model(**batch, output_hidden_states=True)
    for layer, states in enumerate(output.hidden_states):
        assert torch.equal(signals[f"hidden.{layer}"], states)
    assert torch.equal(signals["logits"], output.logits)
    assert set(signals) == {*NAMES, "logits"}


def test_projections_are_linear_maps_of_the_layers_input(model, batch):
    signals = forward_signals(model, Capture(model, NAMES), batch)
    family = get_family(model.config)
    for part in ("query", "key", "value"):
        linear = family.module(model, family.projection(3, part))
        torch.testing.assert_close(signals[f"{part}.3"], linear(signals["hidden.2"]))


def test_widths(model, batch):
    for name, signal in forward_signals(model, Capture(model, NAMES), batch).items():
        assert signal.shape[-1] == signal_width(name, model.config)


@pytest.mark.parametrize("names", [["query.2", "key.2", "value.2"], ["hidden.1", "value.1"]], ids=str)
def test_a_forward_ends_with_its_last_signal_where_nothing_else_is_wanted(model, batch, names):
    whole = forward_signals(model, Capture(model, names), batch)
    family = get_family(model.config)
    ran = []
    for layer in (1, 2, 3):
        output = family.module(model, family.layer_output(layer))
        output.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    capture = Capture(model, names, only=True)
    for _ in range(2):
        signals = forward_signals(model, capture, batch)
        assert signals.keys() == set(names)
        assert all(torch.equal(signals[name], whole[name]) for name in names)
    assert ran == [1, 1]
    assert "logits" in forward_signals(model, Capture(model, [*names, "logits"], only=True), batch)


def test_attention_stays_fused_where_its_maps_are_learned(tiny_bert_config, make_model, batch, monkeypatch):
    """Transformers computes it step by step where `output_attentions` is asked for."""
    fused, calls = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *arguments, **options: calls.append(1) or fused(*arguments, **options),
    )
    tiny_bert_config._attn_implementation = "sdpa"
    shape = Architecture.from_config(tiny_bert_config)
    criterion = DistillationCriterion({"attention": {}, "relations": {}, "logits": {}}, shape, shape)
    for seed, names in enumerate((criterion.student_signals, criterion.teacher_signals)):
        model = make_model(tiny_bert_config, seed)
        assert names <= forward_signals(model, Capture(model, names), batch).keys()
    assert len(calls) == 2 * shape.num_hidden_layers


def test_signals_carry_gradients_and_hooks_are_gone_afterwards(model, batch):
    capture = Capture(model, ["hidden.2"])
    with capture:
        model(**batch)
    capture.signals["hidden.2"][..., 0].sum().backward()
    family = get_family(model.config)
    for layer, reached in ((1, True), (2, True), (3, False)):
        weight = family.module(model, family.in_layer(layer, family.output_dense)).weight
        assert (weight.grad is not None) == reached
    kept = capture.signals["hidden.2"]
    model(**{name: tensor.flip(0) for name, tensor in batch.items()})
    assert capture.signals["hidden.2"] is kept


def test_batch_entries_that_are_no_inputs_of_this_model_stay_out(model, batch):
    more = {
        "labels": torch.tensor([0, 1]),
        "teacher": {},
        "token_type_ids": torch.zeros_like(batch["input_ids"]),
    }
    signals = forward_signals(model, Capture(model, []), batch | more)
    assert set(signals) == {"logits"}


@pytest.mark.parametrize("name", ["hidden.4", "query.0", "key.4"])
def test_a_layer_that_does_not_exist_is_refused(model, name):
    with pytest.raises(InvalidInput, match="this model has layers"):
        Capture(model, [name])


@pytest.mark.parametrize("name", ["attention.1", "hidden", "hidden.last"])
def test_an_unknown_signal_is_refused(model, name):
    with pytest.raises(InvalidInput, match=r"signals are logits, hidden\.K"):
        Capture(model, [name])


def test_a_hook_that_nothing_fed_is_an_error(tiny_bert_config, make_model, batch):
    captured, other = make_model(tiny_bert_config), make_model(tiny_bert_config)
    with pytest.raises(RuntimeError, match=r"no forward fed the hooks for hidden\.1"):
        forward_signals(other, Capture(captured, ["hidden.1"]), batch)
