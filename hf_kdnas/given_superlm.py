"""Trained SuperLMs that students start from, in the folder that `kdnas superlm train` left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_kdnas.errors import InvalidInput
from hf_kdnas.given_student import alike_architecture, load_alike
from hf_kdnas.resources import resolve_path
from hf_kdnas.run import read_json
from hf_kdnas.teacher import check_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from hf_kdnas.architecture import Architecture

KEY = "distillation.superlm"


@dataclass(frozen=True)
class GivenSuperLMs:
    """SuperLMs, found and checked, but not loaded.

    Attributes:
        shapes: The shape of each by its folder.
        layers: Which of their layers a shallower student has (see `slicing.source_layers`).
    """

    shapes: dict[Path, Architecture]
    layers: str

    def load(self, teacher: PreTrainedModel, seed: int) -> tuple[PreTrainedModel, ...]:
        """The SuperLMs as models of the teacher's class, from small to large.

        Args:
            teacher: The teacher.
            seed: Decides what they have no weights for, such as the task head.
        """
        models = [load_alike(KEY, str(folder), shape, teacher, seed) for folder, shape in self.shapes.items()]
        return tuple(sorted(models, key=lambda model: int(model.num_parameters())))


def find_superlms(path: str, teacher: PretrainedConfig) -> GivenSuperLMs:
    """Look into the folder of a run, of one of its SuperLMs, or of any other encoder.

    Args:
        path: A recipe's `distillation.superlm`.
        teacher: The teacher's config.

    Raises:
        InvalidInput: If it holds no model, or one of another type or with other embeddings than the teacher,
            or is the folder of a run whose training has not finished.
    """
    root = Path(resolve_path(path)).resolve()
    untrained = [
        folder.name
        for folder in sorted(root.glob("spaces/*"))
        if folder.is_dir() and not (folder / "superlm").is_dir()
    ]
    if untrained:
        raise InvalidInput(
            KEY,
            path,
            f"the training of {', '.join(untrained)} has not finished",
            "Finish it (kdnas superlm train), or give the folder of one SuperLM, spaces/NAME/superlm.",
        )
    folders = sorted(root.glob("spaces/*/superlm")) or [root]
    if not (folders[0] / "config.json").is_file():
        raise InvalidInput(
            KEY,
            path,
            "must be a model's folder, or a run's with spaces/NAME/superlm",
            "Train a SuperLM first (kdnas superlm train), and give the folder of its run.",
        )
    return GivenSuperLMs({folder: _shape(folder, teacher) for folder in folders}, _layers(folders[0]))


def _shape(folder: Path, teacher: PretrainedConfig) -> Architecture:
    from transformers import AutoConfig

    check_folder(KEY, str(folder), tokenizer=False)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            KEY, str(folder), "must be a model's folder", " ".join(str(error).split())
        ) from error
    return alike_architecture(KEY, str(folder), config, teacher)


def _layers(folder: Path) -> str:
    """The layer choice that a run trained its SuperLMs with; AutoDistil's for any other model."""
    settings = read_json(folder.parents[2] / "settings.json") if folder.match("spaces/*/*") else None
    return str((settings or {}).get("superlm.layers", "alternate"))
