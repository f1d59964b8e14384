"""Training one model to the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

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
    assert not (tmp_path / "student.checkpoints").exists()
