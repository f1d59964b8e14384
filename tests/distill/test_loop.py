"""Training by a plain loop; with objectives and schedules it is shown by mini-KD's tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.data import DistillationCollator
from hf_kdnas.distill.loop import train_alone
from hf_kdnas.progress import Narrator
from hf_kdnas.recipe import TrainingSection

ROWS = [{"input_ids": [2, 5 + index % 2, *[9] * (index % 3), 3], "labels": index % 2} for index in range(16)]


@pytest.mark.parametrize(("objective", "runs"), [("task", 0), ("logits", 1 + 6)])
def test_a_teacher_that_nothing_asks_is_not_run(
    tiny_bert_config: Any, make_model: Any, objective: str, runs: int
) -> None:
    """With a sample to calibrate on, then once a step."""
    student, teacher = make_model(tiny_bert_config, seed=0), make_model(tiny_bert_config, seed=1)
    seen: list[int] = []
    teacher.register_forward_hook(lambda *arguments: seen.append(1))
    shape = Architecture.from_config(tiny_bert_config)
    section = TrainingSection(epochs=3, batch_size=8, learning_rate=1e-3, precision="fp32")
    before, state = student.classifier.weight.detach().clone(), torch.get_rng_state()
    train_alone(
        student,
        DistillationCriterion({objective: {}}, shape, shape),
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
