"""Train one model to the end, going on from where an earlier launch stopped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from transformers.trainer_utils import get_last_checkpoint

from hf_kdnas.distill.arguments import training_arguments
from hf_kdnas.distill.trainer import DistillationTrainer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_kdnas.distill.signals import TeacherSignals
    from hf_kdnas.recipe import TrainingSection


def train(
    model: PreTrainedModel,
    section: TrainingSection,
    objectives: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    checkpoints: Path,
    *,
    seed: int,
    teacher: PreTrainedModel | TeacherSignals | None = None,
    projection: Tensor | None = None,
    report_to: Sequence[str] = ("none",),
    run_name: str | None = None,
) -> None:
    """Train a model in place by DistillationTrainer; with the objective `task` alone it is fine-tuned.

    The section's batch size is that of a step over all ranks, so that a run gives the same student
    however many processes it has.

    Args:
        model: The student, or a teacher to be fine-tuned.
        section: How long and how fast.
        objectives: As in the recipe.
        rows: Tokenised training rows.
        checkpoints: Folder for an epoch's checkpoint; removed at the end.
        seed: Decides dropout and the order of the rows.
        teacher: What `DistillationTrainer` takes.
        projection: The same.
        report_to: Trackers.
        run_name: Names the run in them.
    """
    processes = PartialState()
    ranks = processes.num_processes
    arguments = training_arguments(
        section,
        checkpoints,
        objectives=dict(objectives),
        seed=seed,
        report_to=list(report_to),
        run_name=run_name,
        per_device_train_batch_size=max(1, section.batch_size // ranks),
        disable_tqdm=True,
        logging_strategy="epoch",
    )
    trainer = DistillationTrainer(model, arguments, teacher, projection=projection, train_dataset=list(rows))
    trainer.train(
        resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    )
    processes.wait_for_everyone()
    if processes.is_main_process:
        shutil.rmtree(checkpoints, ignore_errors=True)
