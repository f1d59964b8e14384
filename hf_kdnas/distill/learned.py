"""What a criterion learns, kept beside each of its trainer's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from hf_kdnas.errors import InvalidInput

if TYPE_CHECKING:
    from hf_kdnas.distill.criterion import DistillationCriterion

CRITERION = "criterion.safetensors"


def save_learned(criterion: DistillationCriterion, checkpoint: Path) -> None:
    """Write the learned maps into a checkpoint, if there are any."""
    learned = {name: tensor.contiguous() for name, tensor in criterion.state_dict().items()}
    if learned:
        save_file(learned, checkpoint / CRITERION)


def load_learned(criterion: DistillationCriterion, checkpoint: Path) -> None:
    """Take the learned maps from a checkpoint, if the criterion has any.

    Raises:
        InvalidInput: If the checkpoint lacks them, or has those of other objectives.
    """
    wanted = {name: tensor.shape for name, tensor in criterion.state_dict().items()}
    if not wanted:
        return
    file = checkpoint / CRITERION
    if not file.exists():
        raise InvalidInput(
            "resume_from_checkpoint",
            str(checkpoint),
            f"must hold {CRITERION}, the learned maps, which save_only_model leaves out",
            "Resume from a checkpoint that was saved without save_only_model, or train anew.",
        )
    learned = load_file(file)
    if {name: tensor.shape for name, tensor in learned.items()} != wanted:
        raise InvalidInput(
            "resume_from_checkpoint",
            str(checkpoint),
            f"its learned maps are not those of the objectives {', '.join(criterion.weights)}",
            "Go on with the objectives and the shapes that it was saved with, or train anew.",
        )
    criterion.load_state_dict(learned)
