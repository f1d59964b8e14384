"""Training by a plain loop; with objectives and schedules it is shown by mini-KD's tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.data import DistillationCollator
from hf_kdnas.distill.loop import train_alone
from hf_kdnas.distill.signals import TeacherSignals
from hf_kdnas.progress import Narrator
from hf_kdnas.recipe import TrainingSection
from hf_kdnas.tasks.masking import Masking

ROWS = [{"input_ids": [2, 5 + index % 2, *[9] * (index % 3), 3], "labels": index % 2} for index in range(16)]


@pytest.mark.parametrize(
    ("objectives", "runs"),
    [({"task": {}}, 0), ({"logits": {}}, 6), ({"logits": {}, "hidden": {"layers": "searched"}}, 1 + 6)],
)
def test_a_teacher_that_nothing_asks_is_not_run(
    tiny_bert_config: Any, make_model: Any, objectives: dict[str, Any], runs: int
) -> None:
    """With a sample to calibrate on where there is something to, then once a step."""
    student, teacher = make_model(tiny_bert_config, seed=0), make_model(tiny_bert_config, seed=1)
    seen: list[int] = []
    teacher.register_forward_hook(lambda *arguments: seen.append(1))
    shape = Architecture.from_config(tiny_bert_config)
    section = TrainingSection(epochs=3, batch_size=8, learning_rate=1e-3, precision="fp32")
    before, state = student.classifier.weight.detach().clone(), torch.get_rng_state()
    train_alone(
        student,
        DistillationCriterion(objectives, shape, shape),
        section,
        ROWS,
        DistillationCollator(0),
        torch.device("cpu"),
        teacher=teacher,
        seed=0,
        narrator=Narrator(speaks=False),
        what="student",
    )
    assert len(seen) == runs
    assert not torch.equal(student.classifier.weight, before)
    assert student.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_small_gradients_survive_half_precision(
    tiny_bert_config: Any, make_model: Any, precision: str
) -> None:
    student, teacher = make_model(tiny_bert_config, seed=0), make_model(tiny_bert_config, seed=1)
    shape = Architecture.from_config(tiny_bert_config)
    weight = student.bert.encoder.layer[0].output.dense.weight
    before = weight.detach().clone()
    train_alone(
        student,
        DistillationCriterion({"logits": {"weight": 1e-5}}, shape, shape),
        TrainingSection(epochs=1, batch_size=8, learning_rate=1e-3, weight_decay=0, precision=precision),
        ROWS,
        DistillationCollator(0),
        torch.device("cpu"),
        teacher=teacher,
        teacher_dtype="float32",
        seed=0,
        narrator=Narrator(speaks=False),
        what="student",
    )
    assert (weight != before).float().mean() > 0.9


def test_micro_batches_give_the_gradient_of_the_joined_batch(
    tiny_bert_config: Any, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before clipping and AdamW, which hide a factor."""
    tiny_bert_config.hidden_dropout_prob = tiny_bert_config.attention_probs_dropout_prob = 0.0
    shape = Architecture.from_config(tiny_bert_config)
    found: list[list[torch.Tensor]] = []
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda parameters, most: found.append(
            [each.grad.clone() for each in parameters if each.grad is not None]
        ),
    )
    for size, parts in ((16, 1), (2, 8)):
        train_alone(
            make_model(tiny_bert_config, seed=0),
            DistillationCriterion({"logits": {}, "hidden": {}, "task": {}}, shape, shape),
            TrainingSection(epochs=1, batch_size=size, gradient_accumulation_steps=parts, precision="fp32"),
            ROWS,
            DistillationCollator(0),
            torch.device("cpu"),
            teacher=make_model(tiny_bert_config, seed=1),
            seed=0,
            narrator=Narrator(speaks=False),
            what="student",
        )
    whole, joined = found
    assert any(each.abs().max() > 1e-2 for each in whole)
    for ours, theirs in zip(joined, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_rate_rises_and_falls_and_gradients_are_clipped(
    tiny_bert_config: Any, make_model: Any, adamw_steps: list[tuple[float, float]]
) -> None:
    shape = Architecture.from_config(tiny_bert_config)
    section = {"learning_rate": 1.0, "warmup_fraction": 0.2, "max_grad_norm": 1e-3, "precision": "fp32"}
    train_alone(
        make_model(tiny_bert_config),
        DistillationCriterion({"task": {}}, shape, shape),
        TrainingSection(epochs=5, batch_size=8, **section),
        ROWS,
        DistillationCollator(0),
        torch.device("cpu"),
        seed=0,
        narrator=Narrator(speaks=False),
        what="student",
    )
    rates, norms = map(list, zip(*adamw_steps, strict=True))
    # As a Trainer's: up from 0 in 2 steps, down to 0 behind the last.
    assert rates == [0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert norms == pytest.approx([1e-3] * 10, rel=0.01)


def test_every_epoch_hides_tokens_of_its_own(tiny_bert_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, hide = [], Masking.in_epoch

    def noting(masking: Masking, epoch: torch.Tensor, *batch: torch.Tensor) -> Any:
        seen.append(epoch.tolist())
        return hide(masking, epoch, *batch)

    monkeypatch.setattr(Masking, "in_epoch", noting)
    shape = Architecture.from_config(tiny_bert_config)
    train_alone(
        AutoModelForMaskedLM.from_config(tiny_bert_config),
        DistillationCriterion({"task": {}}, shape, shape),
        TrainingSection(epochs=3, batch_size=8, precision="fp32"),
        [{"input_ids": row["input_ids"]} for row in ROWS],
        DistillationCollator(0, masking=Masking(4, 120, (0, 2, 3, 4), 0.5)),
        torch.device("cpu"),
        seed=7,
        narrator=Narrator(speaks=False),
        what="student",
    )
    assert seen == [[7, epoch] for epoch in (0, 0, 1, 1, 2, 2)]


def test_layers_that_a_search_left_out_are_not_read_again(
    tiny_bert_config: Any, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = make_model(tiny_bert_config, seed=1)
    shape = Architecture.from_config(tiny_bert_config)
    student = replace(shape, num_hidden_layers=1)
    signals = TeacherSignals.build(
        teacher,
        [row["input_ids"] for row in ROWS],
        [f"hidden.{layer}" for layer in (1, 2, 3)],
        tmp_path / "s",
    )
    read: list[int] = []
    collate = TeacherSignals.collate

    def noting(signals: TeacherSignals, *arguments: Any) -> Any:
        read.append(len(signals.names))
        return collate(signals, *arguments)

    monkeypatch.setattr(TeacherSignals, "collate", noting)
    train_alone(
        make_model(student.apply_to(tiny_bert_config)),
        DistillationCriterion({"hidden": {"layers": "searched"}}, student, shape),
        TrainingSection(epochs=1, batch_size=8, precision="fp32"),
        [{**row, "index": index} for index, row in enumerate(ROWS)],
        DistillationCollator(0, signals),
        torch.device("cpu"),
        seed=0,
        narrator=Narrator(speaks=False),
        what="student",
    )
    assert read == [3, 1, 1]
