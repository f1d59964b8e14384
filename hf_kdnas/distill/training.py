"""Train one model to the end, going on from where an earlier launch stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import patch_environment
from transformers import PrinterCallback, TrainerCallback

from hf_kdnas.distill.arguments import DistillationArguments, training_arguments
from hf_kdnas.distill.trainer import DistillationTrainer, last_checkpoint
from hf_kdnas.errors import InvalidInput
from hf_kdnas.run import read_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, TrainerState

    from hf_kdnas.distill.signals import TeacherSignals
    from hf_kdnas.progress import Narrator
    from hf_kdnas.recipe import TrainingSection
    from hf_kdnas.tasks.masking import Masking


def train(
    model: PreTrainedModel,
    section: TrainingSection,
    objectives: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    checkpoints: Path,
    *,
    seed: int,
    teacher: PreTrainedModel | TeacherSignals | None = None,
    teacher_dtype: str = "auto",
    projection: Tensor | None = None,
    masking: Masking | None = None,
    narrator: Narrator,
    what: str,
    report_to: Sequence[str] = ("none",),
) -> None:
    """Train a model in place by DistillationTrainer; with the objective `task` alone it is fine-tuned.

    The section's batch size is that of a step over all ranks, so that a run gives the same student
    however many processes it has, but for an epoch's last step: where rows are left over, Accelerate fills
    the ranks' batches up with rows of the epoch's beginning.

    Args:
        model: The student, or a teacher to be fine-tuned.
        section: How long and how fast.
        objectives: As in the recipe.
        rows: Tokenised training rows.
        checkpoints: Folder for an epoch's checkpoint; the last one stays, so that a kill before the model is
            saved costs nothing.
        seed: Decides dropout and the order of the rows.
        teacher: What `DistillationTrainer` takes.
        teacher_dtype: What a live one computes in.
        projection: What `DistillationTrainer` takes.
        masking: Hides tokens of the rows.
        narrator: Tells how it goes on.
        what: Names the model there and in trackers.
        report_to: Trackers; TensorBoard's files are beside the checkpoints, in `logs`.
    """
    arguments = shared_arguments(
        section,
        checkpoints,
        objectives=dict(objectives),
        teacher_dtype=teacher_dtype,
        seed=seed,
        report_to=list(report_to),
        run_name=what,
    )
    with logging_to(checkpoints.parent / "logs" / checkpoints.stem, arguments):
        trainer = DistillationTrainer(
            model, arguments, teacher, projection=projection, masking=masking, train_dataset=list(rows)
        )
    run_trainer(trainer, checkpoints, narrator, what)


def shared_arguments(section: TrainingSection, checkpoints: Path, **extra: Any) -> DistillationArguments:
    """The arguments of a training whose steps are shared by all ranks.

    Args:
        section: How long and how fast; its batch size is that of a step over all ranks.
        checkpoints: Where checkpoints go.
        **extra: Further fields of DistillationArguments.

    Raises:
        InvalidInput: If the ranks don't divide the batch size, or as `training_arguments` does.
    """
    ranks = PartialState().num_processes
    per_device, rest = divmod(section.batch_size, ranks)
    if rest:
        raise InvalidInput(
            "batch_size",
            section.batch_size,
            f"it is shared by the {ranks} processes of this launch, which must divide it",
            f"Choose a multiple of {ranks}, or another number of processes.",
        )
    return training_arguments(section, checkpoints, per_device_train_batch_size=per_device, **extra)


@contextmanager
def logging_to(folder: Path, arguments: DistillationArguments) -> Iterator[None]:
    """Let TensorBoard write to a folder that outlives the checkpoints.

    For a trainer that is made meanwhile: Transformers 4.57 has an argument for it, 5 a variable of the
    environment. What the user says by either is left.

    Args:
        folder: Where to.
        arguments: The trainer's.
    """
    folder = Path(os.environ.get("TENSORBOARD_LOGGING_DIR", folder))
    if str(getattr(arguments, "logging_dir", "")).startswith(str(arguments.output_dir)):
        arguments.logging_dir = str(folder)
    with patch_environment(tensorboard_logging_dir=folder):
        yield


def run_trainer(trainer: DistillationTrainer, checkpoints: Path, narrator: Narrator, what: str) -> None:
    """Train to the end, from the last checkpoint in a folder on.

    Args:
        trainer: The trainer.
        checkpoints: The folder.
        narrator: Tells how it goes on.
        what: Names the model there.
    """
    last = last_checkpoint(checkpoints)
    if last is not None and _has_ended(last):
        # Trainer would take a step more where the last epoch isn't whole.
        trainer._load_from_checkpoint(str(last))
    else:
        trainer.remove_callback(PrinterCallback)
        with ExitStack() as stack:
            trainer.add_callback(_Progress(narrator, what, stack))
            trainer.train(resume_from_checkpoint=last)
    PartialState().wait_for_everyone()


def _has_ended(checkpoint: Path) -> bool:
    """Whether a checkpoint is that of a training's last step."""
    state = read_json(checkpoint / "trainer_state.json")
    return bool(state["global_step"] >= state["max_steps"])


class _Progress(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Trainer's progress, told by ours."""

    def __init__(self, narrator: Narrator, what: str, stack: ExitStack) -> None:
        self._narrator = narrator
        self._what = what
        self._stack = stack

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Begin the bar, now that the number of steps is known."""
        bar = self._narrator.loop(self._what, state.max_steps, state.global_step)
        self._update = self._stack.enter_context(bar)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Move it on."""
        loss = next((each["loss"] for each in reversed(state.log_history) if "loss" in each), None)
        self._update(state.global_step, "" if loss is None else f"loss {loss:.4f}")
