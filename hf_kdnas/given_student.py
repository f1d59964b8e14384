"""The student of a distillation without a search: a hand-crafted shape, or a model that is there already."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from hf_kdnas.architecture import Architecture
from hf_kdnas.baselines import BASELINES, baseline_architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.resources import resolve_path

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# A student takes over the teacher's config but for its shape: embeddings of another size would be drawn anew.
_ALIKE = ("model_type", "vocab_size", "max_position_embeddings", "type_vocab_size")


def is_model(student: str) -> bool:
    """Whether a recipe's `student` is a model with weights of its own, not the name or key of a shape."""
    if student in BASELINES:
        return False
    try:
        Architecture.parse(student)
    except InvalidInput:
        return True
    return False


def student_architecture(student: str, teacher: PretrainedConfig) -> Architecture:
    """The shape of a recipe's `student`.

    Args:
        student: A baseline's name, an architecture's key, a model's folder or Hub id.
        teacher: The teacher's config.

    Raises:
        InvalidInput: If there is no such model, or its type or its embeddings are not the teacher's.
    """
    if not is_model(student):
        return baseline_architecture(student, Architecture.from_config(teacher))
    from transformers import AutoConfig

    import hf_kdnas.exact  # noqa: F401  # so that the Auto classes know it

    try:
        config = AutoConfig.from_pretrained(resolve_path(student))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            "student",
            student,
            f"must be {', '.join(BASELINES)}, a key like 4L-312H-1200F-12A-gelu, a model's folder or Hub id",
            " ".join(str(error).split()),
        ) from error
    for name in _ALIKE:
        ours, theirs = getattr(config, name, None), getattr(teacher, name, None)
        if ours != theirs:
            raise InvalidInput(
                "student",
                f"{student} ({name} {ours})",
                f"the teacher's {name} is {theirs}",
                "Choose a student of the teacher's type, with its tokenizer.",
            )
    return Architecture.from_config(config)


def load_student(student: str, teacher: PreTrainedModel) -> PreTrainedModel:
    """A model that is there already, with the teacher's labels; a head of other labels is drawn anew."""
    path = resolve_path(student)
    shape = student_architecture(student, teacher.config)
    loaded: PreTrainedModel = type(teacher).from_pretrained(
        path,
        config=shape.apply_to(copy.deepcopy(teacher.config)),
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        attn_implementation=teacher.config._attn_implementation,
    )
    return loaded
