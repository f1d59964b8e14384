"""Training the shared weights of a space: what a step is, how it goes on, what stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from transformers import BertForMaskedLM, BertModel

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.errors import InvalidInput
from hf_kdnas.processes import join_processes
from hf_kdnas.progress import Narrator
from hf_kdnas.recipe import Recipe, load_recipe
from hf_kdnas.run import RunFolder
from hf_kdnas.superlm import trainer as trainer_module
from hf_kdnas.superlm.checkpoint import Checkpoint
from hf_kdnas.superlm.model import Subnet, SuperLM
from hf_kdnas.superlm.plan import plan_superlm
from hf_kdnas.superlm.run import SuperLMRun
from hf_kdnas.superlm.trainer import SuperLMTrainer


@pytest.fixture
def make_trainer(recipe: Recipe, tmp_path):
    """A trainer of the wide space, from the same start each time."""
    return trainers(recipe, tmp_path)


def trainers(recipe: Recipe, tmp_path: Path) -> Callable[..., SuperLMTrainer]:
    """What makes trainers of a recipe's wide space, from the same start each time."""
    plan = plan_superlm(recipe)
    run = SuperLMRun(plan, RunFolder(tmp_path / "run"), join_processes())
    run._prepare()

    def make(checkpoint: str = "checkpoint", **changes) -> SuperLMTrainer:
        losses = plan.losses(plan.objectives, run._projection, run.device)
        return SuperLMTrainer(
            superlm=SuperLM(run._load(run.folder / "spaces" / "wide" / "start")),
            space=plan.spaces["wide"],
            parameters=plan.parameters,
            teacher=run.teacher,
            teacher_precision="fp32",
            losses=losses,
            windows=run.windows,
            masking=None,
            held_out=run.held_out,
            section=replace(plan.section.training, **changes),
            seed=recipe.seed,
            checkpoint=Checkpoint(tmp_path / checkpoint),
            processes=PartialState(),
            narrator=Narrator(),
        )

    return make


def weights(trainer: SuperLMTrainer) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in trainer.superlm.model.named_parameters()}


def without_dropout(trainer: SuperLMTrainer) -> SuperLMTrainer:
    config = trainer.superlm.model.config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return trainer


def gradients(
    trainer: SuperLMTrainer, windows: list[list[int]], micro_batches: int
) -> dict[str, torch.Tensor]:
    size = len(windows) // micro_batches
    return gradients_of(
        trainer, [trainer._batch(windows[at : at + size]) for at in range(0, len(windows), size)]
    )


def gradients_of(trainer: SuperLMTrainer, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    trainer._accumulated(0, batches)
    return {
        name: each.grad for name, each in trainer.superlm.model.named_parameters() if each.grad is not None
    }


def test_a_steps_gradient_is_the_sum_over_its_members(make_trainer) -> None:
    trainer = without_dropout(make_trainer())
    windows = [window for window, *_ in zip(trainer.windows.held_out, range(4), strict=False)]
    found = gradients(trainer, windows, 1)
    batch = trainer._batch(windows)
    expected = {name: torch.zeros_like(each) for name, each in trainer.superlm.model.named_parameters()}
    members = trainer._members(0)
    assert len(members) == 4
    for member in members:
        student: BertModel = trainer.superlm.extract(member)
        criterion = trainer.losses[member]
        signals = forward_signals(student, Capture(student, criterion.student_signals), batch)
        loss, _ = criterion(signals, trainer._teacher_signals(batch), batch, criterion.counts(batch))
        loss.backward()
        parts = Subnet(trainer.superlm.model, member, "alternate")._parts
        for name, parameter in student.named_parameters():
            if parameter.grad is not None:
                parts[name].add_gradient(expected[parts[name].source], parameter.grad)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-11)
    assert all(not expected[name].any() for name in expected.keys() - found.keys())


def test_micro_batches_add_up_to_the_joined_batch(make_trainer) -> None:
    whole, parts = without_dropout(make_trainer()), without_dropout(make_trainer())
    windows = whole.windows.held_out[:4]
    found = gradients(parts, windows, 4)
    for name, gradient in gradients(whole, windows, 1).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-11)


def test_hidden_tokens_count_alike_however_many_a_micro_batch_has(
    recipe_file, tiny_bert_config, tmp_path
) -> None:
    BertForMaskedLM(tiny_bert_config).save_pretrained(tmp_path / "teacher")
    objectives = "superlm.objectives={relations: {loss: mse}, mlm: {}}"
    make = trainers(load_recipe(str(recipe_file), [objectives]), tmp_path)
    whole, parts = without_dropout(make()), without_dropout(make())
    batch = whole._batch(whole.windows.held_out[:4])
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    for row, hidden in enumerate([7, 1, 0, 3]):
        batch["labels"][row, 1 : 1 + hidden] = batch["input_ids"][row, 1 : 1 + hidden]
    rows = [{name: values[row : row + 1] for name, values in batch.items()} for row in range(4)]
    wanted, found = gradients_of(whole, [batch]), gradients_of(parts, rows)
    # Relations alone never reach the head.
    assert wanted["cls.predictions.transform.dense.weight"].any()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-8)


def test_mixed_precision_trains_the_same_weights(make_trainer) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        trainer = without_dropout(make_trainer(precision=precision))
        shared = gradients(trainer, trainer.windows.held_out[:4], 1)
        assert {each.dtype for each in shared.values()} == {torch.float32}
        found[precision] = torch.cat([each.flatten() for each in shared.values()])
    assert not torch.equal(found["fp32"], found["bf16"])
    assert torch.cosine_similarity(found["fp32"], found["bf16"], dim=0) > 0.98
    settings = {"steps": 60, "evaluation_steps": 60, "learning_rate": 3e-3, "precision": "bf16"}
    before, after = (each["held_out"] for each in make_trainer(**settings).run("wide"))
    assert after["middle"] < before["middle"]


def test_weights_change_over_the_training(make_trainer) -> None:
    trainer, seen = make_trainer(steps=3), []

    def noting(*arguments):
        seen.append(trainer.losses[trainer._extremes[0]].progress)
        return original(*arguments)

    original = trainer._accumulated
    object.__setattr__(trainer, "_accumulated", noting)
    trainer.run("wide")
    assert seen == [0, 1 / 3, 2 / 3]


def test_the_rate_rises_and_falls_and_gradients_are_clipped(make_trainer, adamw_steps) -> None:
    section = {"learning_rate": 1.0, "warmup_fraction": 0.2, "max_grad_norm": 1e-6}
    make_trainer(steps=10, evaluation_steps=10, save_steps=10, **section).run("wide")
    rates, norms = map(list, zip(*adamw_steps, strict=True))
    # Up in 2 steps, down to 0 behind the last.
    assert rates == [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert norms == pytest.approx([1e-6] * 10, rel=0.1)


def test_training_lowers_the_held_out_loss(make_trainer) -> None:
    history = make_trainer(steps=60, evaluation_steps=60, learning_rate=3e-3).run("wide")
    assert [each["step"] for each in history] == [0, 60]
    before, after = (each["held_out"] for each in history)
    assert before.keys() == {"largest", "middle", "smallest"}
    assert after["middle"] < before["middle"]
    assert after["smallest"] < before["smallest"]
    # The largest member begins as the teacher itself: nothing to learn, and rounding to lose.
    assert after["largest"] < after["middle"]
    assert history[1]["training"].keys() == {"largest", "smallest", "random"}


def test_a_training_that_was_killed_goes_on_exactly(make_trainer, monkeypatch) -> None:
    whole = make_trainer("whole", steps=5)
    history = whole.run("wide")
    killed = make_trainer("killed", steps=5)
    seen = []

    def dies(*arguments, **options):
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    original = trainer_module.sandwich
    monkeypatch.setattr(trainer_module, "sandwich", dies)
    with pytest.raises(KeyboardInterrupt):
        killed.run("wide")
    monkeypatch.setattr(trainer_module, "sandwich", original)
    resumed = make_trainer("killed", steps=5)
    assert resumed.run("wide") == history
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("member", [Architecture(3, 32, 4, 64), Architecture(2, 24, 4, 64)], ids=str)
def test_a_loss_that_is_not_finite_names_member_and_step(make_trainer, member, monkeypatch) -> None:
    trainer = make_trainer()
    monkeypatch.setitem(trainer.losses._made, member, _broken(trainer.losses[member]))
    with pytest.raises(InvalidInput, match=rf"a loss of {member.key} that is not finite, at step 1.*skip"):
        trainer.run("wide")


def test_steps_with_such_a_loss_are_left_out_on_request(make_trainer, monkeypatch, capsys) -> None:
    trainer = make_trainer(not_finite="skip", steps=2)
    largest = trainer._extremes[0]
    monkeypatch.setitem(trainer.losses._made, largest, _broken(trainer.losses[largest]))
    before = weights(trainer)
    history = trainer.run("wide")
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer).items())
    assert f"step 2 is left out: a loss of {largest.key} is not finite" in capsys.readouterr().err
    assert history[-1]["training"] == {}


@pytest.mark.parametrize("member", [Architecture(3, 32, 4, 64), Architecture(2, 24, 4, 64)], ids=str)
def test_a_gradient_that_is_not_finite_behind_a_finite_loss_is_found(
    make_trainer, member, monkeypatch
) -> None:
    trainer = make_trainer()
    monkeypatch.setitem(trainer.losses._made, member, _broken(trainer.losses[member], _steep))
    before = weights(trainer)
    with pytest.raises(InvalidInput, match=rf"a gradient of {member.key} that is not finite, at step 1"):
        trainer.run("wide")
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer).items())


def test_a_training_that_leaves_every_step_out_stops(make_trainer, monkeypatch) -> None:
    trainer = make_trainer(not_finite="skip", steps=20)
    largest = trainer._extremes[0]
    monkeypatch.setitem(trainer.losses._made, largest, _broken(trainer.losses[largest], _steep))
    before = weights(trainer)
    with pytest.raises(InvalidInput, match=r"at step 10'; 10 steps in a row were left out"):
        trainer.run("wide")
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer).items())


def _steep(loss: torch.Tensor) -> torch.Tensor:
    """The same loss, with a gradient that is not finite."""
    return loss + 0 * (loss - loss.detach()).sqrt()


def _broken(criterion, change=lambda loss: loss * float("nan")):
    class Broken(type(criterion)):
        def forward(self, *arguments):
            loss, terms = super().forward(*arguments)
            return change(loss), terms

    criterion.__class__ = Broken
    return criterion
