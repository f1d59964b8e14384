"""The student of a distillation without a search: a hand-crafted shape, or a model that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from hf_kdnas.architecture import Architecture, is_key
from hf_kdnas.baselines import BASELINES, baseline_architecture
from hf_kdnas.distill.checks import check_vocabularies
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family
from hf_kdnas.resources import resolve_path, why_not_loaded
from hf_kdnas.teacher import TOKENIZERS, check_folder, without_remarks

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# A student takes over the teacher's config but for its shape: embeddings of another size would be drawn anew.
_ALIKE = ("model_type", "vocab_size", "max_position_embeddings", "type_vocab_size")


def is_model(student: str) -> bool:
    """Whether a recipe's `student` is a model with weights of its own, not the name or key of a shape."""
    return student not in BASELINES and not is_key(student)


def student_architecture(
    student: str, teacher: PretrainedConfig, revision: str | None = None
) -> Architecture:
    """The shape of a recipe's `student`.

    Args:
        student: A baseline's name, an architecture's key, a model's folder or Hub id.
        teacher: The teacher's config.
        revision: Of a model on the Hub.

    Raises:
        InvalidInput: If there is no such model, or its type or its embeddings are not the teacher's.
    """
    if not is_model(student):
        return baseline_architecture(student, Architecture.from_config(teacher))
    from transformers import AutoConfig

    import hf_kdnas.exact  # noqa: F401  # so that the Auto classes know it

    check_folder("student", student, tokenizer=False)
    try:
        config = AutoConfig.from_pretrained(resolve_path(student), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            "student",
            student,
            f"must be {', '.join(BASELINES)}, a key like 4L-312H-1200F-12A-gelu, a model's folder or Hub id",
            why_not_loaded(student, error),
        ) from error
    return alike_architecture("student", student, config, teacher)


def load_student(
    student: str, teacher: PreTrainedModel, seed: int, revision: str | None = None
) -> PreTrainedModel:
    """A model that is there already, with the teacher's labels (see `load_alike`)."""
    shape = student_architecture(student, teacher.config, revision)
    return load_alike("student", resolve_path(student), shape, teacher, seed, revision)


def alike_architecture(
    key: str, model: str, config: PretrainedConfig, teacher: PretrainedConfig
) -> Architecture:
    """The shape of a model whose weights a student begins with.

    Args:
        key: The setting that names it.
        model: Where it is.
        config: Its config.
        teacher: The teacher's config.

    Raises:
        InvalidInput: If its type or its embeddings are not the teacher's.
    """
    _require_alike(key, model, config, teacher, _ALIKE)
    shape = Architecture.from_config(config)
    _require_alike(key, model, config, shape.apply_to(teacher), ("embedding_size",))
    return shape


def check_tokenizer(
    key: str, model: str, teacher: PreTrainedTokenizerBase, revision: str | None = None
) -> None:
    """See that a model that brings a tokenizer numbers its tokens as the teacher does.

    Args:
        key: The setting that names it.
        model: Folder or Hub id.
        teacher: The teacher's tokenizer.
        revision: Of a model on the Hub.

    Raises:
        InvalidInput: If it doesn't, naming a token.
    """
    from transformers import AutoTokenizer

    path = resolve_path(model)
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in TOKENIZERS):
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError):
        return  # a repository without one
    check_vocabularies(tokenizer, teacher, key)


def _require_alike(
    key: str, model: str, config: PretrainedConfig, teacher: PretrainedConfig, names: tuple[str, ...]
) -> None:
    for name in names:
        ours, theirs = getattr(config, name, None), getattr(teacher, name, None)
        if ours != theirs:
            raise InvalidInput(
                key,
                f"{model} ({name} {ours})",
                f"the teacher's {name} is {theirs}",
                "Choose a model of the teacher's type, with its tokenizer.",
            )


def load_alike(
    key: str,
    path: str,
    shape: Architecture,
    teacher: PreTrainedModel,
    seed: int,
    revision: str | None = None,
) -> PreTrainedModel:
    """A model of the teacher's class, with its labels, and with weights of its own.

    What it has no weights for, such as a head for these labels, is drawn: the teacher's head reads
    units in another order.

    Args:
        key: The setting that names it.
        path: Folder or Hub id.
        shape: Its shape.
        teacher: The teacher.
        seed: Decides what is drawn, on all ranks alike.
        revision: Of a model on the Hub.

    Raises:
        InvalidInput: If its weights can't be read, or it has none for its layers.
    """
    with without_remarks(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            loaded, found = type(teacher).from_pretrained(
                path,
                revision=revision,
                config=shape.apply_to(teacher.config),
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                attn_implementation=teacher.config._attn_implementation,
                output_loading_info=True,
            )
        except (OSError, SafetensorError) as error:
            raise InvalidInput(
                key,
                path,
                f"its weights can't be read ({why_not_loaded(path, error)})",
                "Give a model with whole safetensors weights.",
            ) from error
    family = get_family(teacher.config)
    missing = sorted(name for name in found["missing_keys"] if family.layer_of(name))
    if missing:
        raise InvalidInput(
            key,
            path,
            f"has no weights for {missing[0]} and {len(missing) - 1} more",
            "Choose a folder that save_pretrained wrote, of a model of the teacher's type.",
        )
    model: PreTrainedModel = loaded
    return model
