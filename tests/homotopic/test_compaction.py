"""What a compaction keeps of a student, of what objectives learned, and of the optimiser."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import hf_kdnas.exact  # noqa: F401  # a type of ours
from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.errors import InvalidInput
from hf_kdnas.homotopic.compaction import LEARNED, TEACHER_UNITS, Compaction
from hf_kdnas.homotopic.importance import RunningImportance
from hf_kdnas.slicing import query_scale, reorder_by_importance, slice_student

MAPS = {"hidden": {"layers": "uniform+last"}, "embeddings": {}, "direct_relations": {}, "logits": {}}


def logits_of(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


def test_what_is_left_is_the_slice_of_the_reordered_model(tiny_config, batch, make_scores) -> None:
    """In any order of its units: theirs is by importance, ours the one that they had."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_config).double()
    wide = Architecture.from_config(tiny_config)
    shape = replace(wide, hidden_size=12, num_attention_heads=3, intermediate_size=40)
    scores = make_scores(model)
    narrow = Compaction.by_importance(model, shape, scores).student().double()
    assert Architecture.from_config(narrow.config) == shape
    reorder_by_importance(model, scores)
    torch.testing.assert_close(
        logits_of(narrow, batch), logits_of(slice_student(model, shape).double(), batch)
    )


def test_units_stay_in_their_order(tiny_bert_config, make_model, make_scores) -> None:
    model = make_model(tiny_bert_config)
    kept = Compaction.by_importance(model, Architecture(3, 24, 4, 40), make_scores(model)).kept
    assert all(torch.equal(units, units.unique()) for units in kept.values())
    heads = kept["heads", 1].view(4, 6)
    assert torch.equal(heads // 8, torch.arange(4)[:, None].expand(4, 6))


def test_the_most_important_units_stay(tiny_bert_config, make_model, make_scores) -> None:
    model = make_model(tiny_bert_config)
    scores = make_scores(model)
    kept = Compaction.by_importance(model, Architecture(3, 16, 2, 40), scores).kept
    assert set(kept["hidden", None].tolist()) == set(scores["hidden", None].topk(16).indices.tolist())
    assert set(kept["ffn", 2].tolist()) == set(scores["ffn", 2].topk(40).indices.tolist())
    best = scores["heads", 3].view(4, 8).sum(1).topk(2).indices.sort().values
    assert torch.equal(kept["heads", 3].view(2, 8)[:, 0] // 8, best)


def exact_model():
    """A model whose heads have a size of their own: they can go while the residual stream stays."""
    fields = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model("exact-bert", vocab_size=120, head_size=12, num_labels=2, **fields)
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize(
    ("heads", "size", "neurons"), [(4, 12, 40), (2, 12, 64), (4, 9, 64), (3, 5, 17)], ids=str
)
def test_removed_is_as_good_as_masked(heads, size, neurons, batch, make_scores) -> None:
    model = exact_model()
    shape = Architecture(3, 32, heads, neurons, head_size=size)
    cut = Compaction.by_importance(model, shape, make_scores(model))
    narrow = cut.student()
    layers = model.base_model.encoder.layer
    with torch.no_grad():
        for number, layer in enumerate(layers, start=1):
            masked = torch.ones(48)
            masked[cut.kept["heads", number]] = 0
            for linear in (layer.attention.self.query, layer.attention.self.value):
                linear.weight[masked.bool()] = 0
                linear.bias[masked.bool()] = 0
            gone = torch.ones(64)
            gone[cut.kept["ffn", number]] = 0
            layer.output.dense.weight[:, gone.bool()] = 0
    torch.testing.assert_close(logits_of(narrow, batch), logits_of(model, batch), atol=1e-5, rtol=0)


def test_learned_maps_lose_what_the_student_loses(tiny_bert_config, make_model, make_scores) -> None:
    """A map that is cut says of the kept units what it said before; queries come scaled."""
    model = make_model(tiny_bert_config)
    wide, narrow = Architecture.from_config(tiny_bert_config), Architecture(3, 16, 4, 40)
    before = DistillationCriterion(MAPS, wide, wide, seed=1)
    after = DistillationCriterion(MAPS, narrow, wide, seed=2)
    cut = Compaction.by_importance(model, narrow, make_scores(model))
    after.load_state_dict(cut.of_criterion(before, before.state_dict()))
    for path, group, scale in (
        ("hidden.maps.2", ("hidden", None), 1),
        ("direct_relations.maps.key", ("heads", 3), 1),
        ("direct_relations.maps.query", ("heads", 3), query_scale(wide, narrow)),
    ):
        units = cut.kept[group]
        states = torch.zeros(5, 32)
        states[:, units] = torch.randn(5, 16)
        old, new = (each.get_submodule(f"objectives.{path}") for each in (before, after))
        torch.testing.assert_close(new(scale * states[:, units]), old(states))


def test_a_copy_begins_without_a_discrepancy(tiny_bert_config, make_model, batch) -> None:
    model = make_model(tiny_bert_config)
    shape = Architecture.from_config(tiny_bert_config)
    criterion = DistillationCriterion({**MAPS, "attention": {}}, shape, shape)
    criterion.begin_as_copy()
    with torch.no_grad():
        signals = forward_signals(
            model, Capture(model, criterion.student_signals | criterion.teacher_signals), batch
        )
        loss, _ = criterion(signals, signals, batch, criterion.counts(batch))
    assert loss < 1e-10


def test_moments_go_on_with_what_they_belong_to(tiny_bert_config, make_model, batch, make_scores) -> None:
    model = make_model(tiny_bert_config)
    shape = Architecture.from_config(tiny_bert_config)
    criterion = DistillationCriterion(MAPS, shape, shape)
    named = [
        *model.named_parameters(),
        *((LEARNED + name, each) for name, each in criterion.named_parameters()),
    ]
    optimiser = torch.optim.AdamW([each for _, each in named])
    for _, parameter in named:
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    cut = Compaction.by_importance(model, Architecture(3, 16, 4, 40), make_scores(model))
    state = cut.of_optimiser(criterion, optimiser.state_dict(), [name for name, _ in named])
    narrow = DistillationCriterion(MAPS, cut.shape, shape)
    after = [*cut.student().parameters(), *narrow.parameters()]
    torch.optim.AdamW(after).load_state_dict(state)
    for number, parameter in enumerate(after):
        assert state["state"][number]["exp_avg"].shape == parameter.shape
        assert state["state"][number]["step"] == 1
    # Moments of a weight are a constant times its gradient, and its square.
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    number = [each for each, _ in named].index(name)
    gradient = cut.of_parameter(name, named[number][1].grad)
    torch.testing.assert_close(state["state"][number]["exp_avg"], 0.1 * gradient)


def test_an_optimiser_that_can_not_be_cut_is_refused(tiny_bert_config, make_model, make_scores) -> None:
    model = make_model(tiny_bert_config)
    cut = Compaction.by_importance(model, Architecture(3, 16, 4, 40), make_scores(model))
    shape = Architecture.from_config(tiny_bert_config)
    state = {"state": {0: {"exp_avg_sq_row": torch.zeros(120)}}, "param_groups": []}
    with pytest.raises(InvalidInput, match=r"optim: got 'an optimiser that keeps \(120,\) for \(120, 32\)"):
        cut.of_optimiser(
            DistillationCriterion(MAPS, shape, shape), state, ["bert.embeddings.word_embeddings.weight"]
        )


def test_scores_go_on_with_their_units(tiny_bert_config, make_model, make_scores, batch) -> None:
    model = make_model(tiny_bert_config)
    running = RunningImportance(model)
    model(**batch, labels=torch.tensor([0, 1, 1, 0])).loss.backward()
    running.update(model)
    before = running.scores()
    cut = Compaction.by_importance(model, Architecture(3, 16, 4, 40), before)
    state = cut.of_scores({**running.state_dict(), TEACHER_UNITS: torch.arange(32) + 100})
    assert torch.equal(state.pop(TEACHER_UNITS), cut.kept["hidden", None] + 100)
    narrow = RunningImportance(cut.student())
    narrow.load_state_dict(state)
    for group, scores in narrow.scores().items():
        torch.testing.assert_close(scores, before[group][cut.kept[group]])
