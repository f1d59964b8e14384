"""Training one model to the end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_kdnas.distill import training
from hf_kdnas.distill.training import train
from hf_kdnas.progress import Narrator
from hf_kdnas.recipe import TrainingSection

ROWS = [{"input_ids": [2, 5 + index % 2, 3], "labels": index % 2} for index in range(8)]


def test_what_tensorboard_writes_outlives_the_checkpoints(
    tiny_bert_config: Any, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers 4.57 has an argument for the place, 5 looks at the environment when a trainer is made."""
    places = []

    class Noting(training.DistillationTrainer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            places.append(Path(getattr(self.args, "logging_dir", os.environ["TENSORBOARD_LOGGING_DIR"])))

    monkeypatch.setattr(training, "DistillationTrainer", Noting)
    train(
        make_model(tiny_bert_config, seed=0),
        TrainingSection(epochs=1, batch_size=4, precision="fp32"),
        {"task": {}},
        ROWS,
        tmp_path / "student.checkpoints",
        seed=0,
        narrator=Narrator(speaks=False),
        what="student",
    )
    assert places == [tmp_path / "logs" / "student"]


def test_going_on_with_other_ranks_the_batch_is_the_same(
    tiny_bert_config: Any, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint has the rows of one rank, which Transformers 4.57 takes for those of this launch."""
    rows = []

    class Counting(training.DistillationTrainer):
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            rows.append(len(inputs["input_ids"]))
            return super().compute_loss(model, inputs, *arguments, **options)

    def trained(epochs: int) -> list[int]:
        rows.clear()
        train(
            make_model(tiny_bert_config, seed=0),
            TrainingSection(epochs=epochs, batch_size=4, precision="fp32"),
            {"task": {}},
            ROWS,
            tmp_path / "checkpoints",
            seed=0,
            narrator=Narrator(speaks=False),
            what="student",
        )
        return list(rows)

    monkeypatch.setattr(training, "DistillationTrainer", Counting)
    assert trained(1) == [4, 4]
    state = tmp_path / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    kept = json.loads(state.read_text(encoding="utf-8"))
    assert kept["train_batch_size"] == 4
    state.write_text(json.dumps({**kept, "train_batch_size": 2, "max_steps": 4}), encoding="utf-8")
    assert trained(2) == [4, 4]


def test_a_training_that_has_ended_is_not_repeated(
    tiny_bert_config: Any, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its model is saved, the last checkpoint is what there is of it."""
    found = []
    for _ in range(2):
        model = make_model(tiny_bert_config, seed=0)
        train(
            model,
            TrainingSection(epochs=1.5, batch_size=4, precision="fp32"),
            {"task": {}},
            ROWS,
            tmp_path / "checkpoints",
            seed=0,
            narrator=Narrator(speaks=False),
            what="student",
        )
        found.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
        monkeypatch.setattr(training.DistillationTrainer, "training_step", None)
    first, second = found
    for name, values in first.items():
        torch.testing.assert_close(second[name], values, rtol=0, atol=0)
