"""Scores of units from a training's own gradients, from weights and from activations."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_kdnas.families import get_family
from hf_kdnas.homotopic.importance import RunningImportance, activation, magnitude, no_scores
from hf_kdnas.importance import sensitivity, unit_dimensions


def batch_of(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 120, (4, 9), generator=draw)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1, 0])}


@pytest.fixture
def model(tiny_bert_config, make_model):
    return make_model(tiny_bert_config)


def step(model, seed: int = 0) -> None:
    model.zero_grad()
    model(**batch_of(seed)).loss.backward()


def test_one_step_scores_units_as_the_initialisation_does(model) -> None:
    running = RunningImportance(model, smoothing=0.0, uncertainty=1)
    step(model)
    running.update(model)
    wanted = sensitivity(model, [batch_of()])
    found = running.scores()
    assert found.keys() == wanted.keys()
    for group, scores in wanted.items():
        torch.testing.assert_close(found[group], scores)


def test_smoothing_and_uncertainty_follow_the_paper(model) -> None:
    running = RunningImportance(model, smoothing=0.85, uncertainty=0.7)
    mean = deviation = torch.zeros(32)
    for seed in range(3):
        step(model, seed)
        running.update(model)
        score = sensitivity(model, [batch_of(seed)])["hidden", None]
        mean = 0.85 * mean + 0.15 * score
        deviation = 0.7 * deviation + 0.3 * (score - mean).abs()
    torch.testing.assert_close(running.scores()["hidden", None], mean * deviation)


def test_without_uncertainty_units_are_smoothed_as_their_parameters_are(model) -> None:
    running = RunningImportance(model, uncertainty=1)
    name, dimension, group = "bert.encoder.layer.1.output.dense.weight", 1, ("ffn", 2)
    smoothed: dict[str, torch.Tensor] = {}
    for seed in range(3):
        step(model, seed)
        running.update(model)
        for each, parameter in model.named_parameters():
            value = (parameter * parameter.grad).abs().detach()
            smoothed[each] = 0.85 * smoothed.get(each, torch.zeros_like(value)) + 0.15 * value
    family = get_family(model.config).of(type(model))
    total = torch.zeros(64)
    for each, values in smoothed.items():
        for axis, unit in unit_dimensions(family, each):
            if unit == group:
                total += values.movedim(axis, 0).flatten(1).sum(1) if values.dim() > 1 else values
    assert smoothed[name].shape[dimension] == 64
    torch.testing.assert_close(running.scores()[group], total)


@pytest.mark.parametrize(
    ("smoothing", "uncertainty", "steps"), [(0.85, 1, 29), (0.85, 0.9, 44), (0.0, 1, 1), (0.5, 0.85, 29)]
)
def test_what_is_longer_ago_hardly_counts(model, smoothing, uncertainty, steps) -> None:
    whole = RunningImportance(model, smoothing=smoothing, uncertainty=uncertainty)
    late = RunningImportance(model, smoothing=smoothing, uncertainty=uncertainty)
    assert late.memory == steps
    for seed in range(60):
        step(model, seed)
        whole.update(model)
        if seed >= 60 - steps:
            late.update(model)
    found = late.scores()["ffn", 1]
    assert found.min() > 0
    torch.testing.assert_close(found, whole.scores()["ffn", 1], rtol=0.05, atol=1e-3 * float(found.max()))


def test_taylor_is_what_the_loss_changes_by_without_a_unit(model) -> None:
    """Of a neuron's outgoing weights, to first order; incoming weights and bias count as well."""
    running = RunningImportance(model, "taylor", smoothing=0.0, uncertainty=1)
    step(model)
    running.update(model)
    layer = model.bert.encoder.layer[0]
    wanted = torch.zeros(64)
    for parameter, dimension in (
        (layer.output.dense.weight, 1),
        (layer.intermediate.dense.weight, 0),
        (layer.intermediate.dense.bias, 0),
    ):
        product = (parameter * parameter.grad).detach().movedim(dimension, 0)
        wanted += product.reshape(64, -1).sum(1)
    torch.testing.assert_close(running.scores()["ffn", 1], wanted.abs())


def test_a_step_that_is_not_finite_is_left_out(model) -> None:
    running = RunningImportance(model)
    step(model)
    running.update(model)
    before = running.scores()
    for parameter in model.parameters():
        parameter.grad.fill_(torch.inf)
    running.update(model)
    for group, scores in running.scores().items():
        torch.testing.assert_close(scores, before[group])

    # Clipping divides by an infinite norm: finite gradients are zero behind it, and say nothing either.
    step(model)
    model.bert.encoder.layer[0].output.dense.weight.grad[0, 0] = torch.inf
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    running.update(model)
    for group, scores in running.scores().items():
        torch.testing.assert_close(scores, before[group])


def test_magnitude_sums_absolute_weights(model) -> None:
    layer = model.bert.encoder.layer[0]
    wanted = (
        layer.intermediate.dense.weight.abs().sum(1)
        + layer.intermediate.dense.bias.abs()
        + layer.output.dense.weight.abs().sum(0)
    )
    torch.testing.assert_close(magnitude(model)["ffn", 1], wanted.detach())


def test_activations_of_padding_play_no_part(model) -> None:
    batch = {name: value for name, value in batch_of().items() if name != "labels"}
    states = model.bert(**batch, output_hidden_states=True).hidden_states[1:]
    wanted = sum((state.abs() * batch["attention_mask"][..., None]).sum((0, 1)) for state in states)
    found = activation(model, [batch])
    torch.testing.assert_close(found["hidden", None], wanted.detach())
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)
    for group, scores in activation(model, [batch]).items():
        torch.testing.assert_close(scores, found[group])
    assert found["ffn", 1].min() > 0
    assert not model.bert.encoder.layer[0].output.dense._forward_pre_hooks


def test_every_family_has_scores_of_every_kind(tiny_config) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_config).eval()
    batch = batch_of()
    running = RunningImportance(model)
    model(**batch).loss.backward()
    running.update(model)
    batch.pop("labels")
    groups = no_scores(model).keys()
    for scores in (running.scores(), magnitude(model), activation(model, [batch])):
        assert scores.keys() == groups
        assert all(scores[group].max() > 0 for group in groups if group[0] != "head_units")
