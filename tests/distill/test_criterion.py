"""The criterion: weights, normalisation by units, options."""

from __future__ import annotations

import pytest
import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.criterion import DistillationCriterion, check_objectives
from hf_kdnas.distill.objectives import Objective
from hf_kdnas.errors import InvalidInput

SHAPE = Architecture(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, intermediate_size=16)


class Offset(Objective):
    """A user's own objective: how far the student's first logit is from a place."""

    def __init__(self, student, teacher, *, place=0.0):
        super().__init__(student, teacher)
        self.place = place
        self.student_signals = frozenset({"logits"})

    def count(self, batch):
        return 2 * len(batch["attention_mask"])

    def total(self, student, teacher, batch):
        return (student["logits"][:, 0] - self.place).abs().sum()


class NoObjective:
    """Something else."""


@pytest.fixture
def batch():
    return {"attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]), "labels": torch.tensor([0, 1])}


@pytest.fixture
def signals():
    torch.manual_seed(0)
    return {"logits": torch.randn(2, 2)} | {f"hidden.{k}": torch.randn(2, 3, 8) for k in range(3)}


def test_weighted_sum_of_terms_over_their_own_units(batch, signals):
    own = f"{__name__}:Offset"
    criterion = DistillationCriterion(
        {"task": {"weight": 0.25}, "hidden": {"weight": 3}, own: {"place": 5.0}, "logits": {"weight": 0}},
        SHAPE,
        SHAPE,
        projection=torch.eye(8),
    )
    counts = criterion.counts(batch)
    assert {name: int(count) for name, count in counts.items()} == {"task": 2, "hidden": 4, own: 4}
    other = {name: tensor + 1 for name, tensor in signals.items()}
    loss, terms = criterion(signals, other, batch, {name: 2 * count for name, count in counts.items()})
    assert terms[own] == pytest.approx((signals["logits"][:, 0] - 5).abs().sum().item() / 8)
    task = torch.nn.functional.cross_entropy(signals["logits"], batch["labels"])
    assert terms["task"] == pytest.approx(task.item() / 2)
    assert loss.item() == pytest.approx((0.25 * terms["task"] + 3 * terms["hidden"] + terms[own]).item())
    assert criterion.student_signals == {"logits", "hidden.1", "hidden.2"}
    assert criterion.teacher_signals == {"hidden.1", "hidden.2"}


def test_a_weight_may_change_over_the_training(batch, signals):
    linear = {"task": {"weight": {"from": 1, "to": 0.2}}, "logits": {"weight": {"from": 0, "to": 4}}}
    criterion = DistillationCriterion(linear, SHAPE, SHAPE)
    other = {name: tensor + torch.randn_like(tensor) for name, tensor in signals.items()}
    for progress, task, logits in ((0.0, 1.0, 0.0), (0.25, 0.8, 1.0), (1.0, 0.2, 4.0)):
        criterion.progress = progress
        loss, terms = criterion(signals, other, batch, criterion.counts(batch))
        assert loss.item() == pytest.approx((task * terms["task"] + logits * terms["logits"]).item())


def test_learned_maps_are_its_parameters_and_its_state(signals):
    criterion = DistillationCriterion({"hidden": None}, SHAPE, SHAPE)
    torch.manual_seed(1)
    for seed, same in ((0, True), (1, False)):
        again = DistillationCriterion({"hidden": None}, SHAPE, SHAPE, seed=seed).state_dict()
        pairs = zip(again.values(), criterion.state_dict().values(), strict=True)
        assert all(torch.equal(*pair) is same for pair in pairs)
    assert set(criterion.state_dict()) == {
        f"objectives.hidden.maps.{layer}.{part}" for layer in (1, 2) for part in ("weight", "bias")
    }
    projected = DistillationCriterion({"hidden": None, "logits": {}}, SHAPE, SHAPE, projection=torch.eye(8))
    assert projected.state_dict() == {}


def test_a_step_without_units_costs_nothing(signals):
    batch = {"attention_mask": torch.ones(2, 3), "labels": torch.tensor([-100, -100])}
    criterion = DistillationCriterion({"task": {}}, SHAPE, SHAPE)
    loss, _ = criterion(signals, {}, batch, criterion.counts(batch))
    assert loss.item() == 0


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({"logit": {}}, "objectives are logits, hidden, embeddings, attention"),
        ({"logits": {"temprature": 2}}, "options are weight, loss, temperature"),
        ({"hidden": {"projection": None}}, "options are weight, layers"),
        ({"logits": {"weight": -1}}, "must be a finite number of 0 or more"),
        ({"logits": {"weight": True}}, "must be a finite number of 0 or more"),
        ({"logits": {"weight": float("inf")}}, "must be a finite number of 0 or more"),
        ({"logits": {"weight": {"from": 1, "to": float("nan")}}}, "must be a finite number of 0 or more"),
        ({"logits": {"weight": {"from": 1}}}, "from: NUMBER, to: NUMBER"),
        ({"logits": {"weight": {"from": 1, "to": -1}}}, "must be a finite number of 0 or more"),
        ({"logits": {"weight": {"from": 0, "to": 0}}}, "at least one needs a weight"),
        ({"logits": {"weight": 0}}, "at least one needs a weight"),
        ({}, "at least one needs a weight"),
        ({"hf_kdnas.nowhere:Loss": {}}, "can't be imported"),
        ({f"{__name__}:Nothing": {}}, "can't be imported"),
        ({f"{__name__}:NoObjective": {}}, "must be a subclass"),
    ],
)
def test_refused_before_any_model_is_there(objectives, message):
    with pytest.raises(InvalidInput, match=message):
        check_objectives(objectives)
