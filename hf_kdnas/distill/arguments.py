"""Arguments of the DistillationTrainer, and how a recipe's training section becomes them."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import patch_environment
from transformers import TrainingArguments

from hf_kdnas.distill.criterion import check_objectives
from hf_kdnas.errors import InvalidInput
from hf_kdnas.precision import TEACHER_DTYPES, resolve_precision
from hf_kdnas.processes import join_processes

if TYPE_CHECKING:
    from hf_kdnas.recipe import TrainingSection

# Transformers 5 has a new name for it, and reads the options under the new name alone.
CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)

# The default of Transformers 5, and its name for what is done here; 4.57 has group_by_length, true or false.
_SAMPLING = ("random", "group_by_length")


@dataclass
class DistillationArguments(TrainingArguments):
    """Transformers' TrainingArguments, and the objectives.

    Columns are never removed: signals and indices have names that no model's forward has.

    Attributes:
        objectives: Options of each objective by name, and its `weight` (see `DistillationCriterion`);
            a dict or the JSON of one, afterwards a dict. None means logits and hidden.
        teacher_dtype: What a live teacher computes in: `auto` (as the student), `float32`, `bfloat16` or
            `float16`.
        dropout: Probability of dropout in the student while it is trained; None leaves its config's.

    Raises:
        InvalidInput: If an objective or one of its options is unknown, or an argument asks for
            something that distillation can't do (FSDP, DeepSpeed, label smoothing, reentrant
            checkpointing, batches in another order).
    """

    # With None among its types HfArgumentParser takes JSON on a command line, as for Trainer's own dicts.
    objectives: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Options of each objective by name, as JSON (docs/concepts.md)."},
    )
    teacher_dtype: str = field(
        default="auto",
        metadata={
            "help": "What a live teacher computes in: auto (as the student), float32, bfloat16, float16."
        },
    )
    dropout: float | None = field(
        default=None,
        metadata={"help": "Dropout of the student while it is trained, instead of its config's."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: signals and indices are such columns."}
    )

    def __post_init__(self) -> None:
        """Check what can be checked before a model is there."""
        self.objectives = _parsed(self.objectives)
        check_objectives(self.objectives)
        if self.teacher_dtype not in ("auto", *TEACHER_DTYPES):
            raise InvalidInput(
                "teacher_dtype",
                self.teacher_dtype,
                f"dtypes are auto, {', '.join(TEACHER_DTYPES)}",
                "Choose one of these.",
            )
        if self.dropout is not None and not 0 <= self.dropout <= 1:
            raise InvalidInput("dropout", self.dropout, "must be from 0 to 1", "Change it.")
        self._refuse()
        before = _left_for_accelerate()
        super().__post_init__()
        # Transformers leaves precision and compilation there, for whatever is trained next as well.
        self._for_accelerate = _left_for_accelerate()
        for name in self._for_accelerate:
            del os.environ[name]
        os.environ.update(before)
        self._check_checkpointing()

    def _refuse(self) -> None:
        sampling = getattr(self, "train_sampling_strategy", "random")
        refused = {
            "remove_unused_columns": (self.remove_unused_columns, "signals are such columns"),
            "fsdp": (self.fsdp, "hooks need whole layers on each rank: DDP or one process"),
            "deepspeed": (self.deepspeed, "hooks need whole layers on each rank: DDP or one process"),
            "label_smoothing_factor": (self.label_smoothing_factor, "the teacher softens the labels"),
            "train_sampling_strategy": (sampling not in _SAMPLING, "batches are made by length"),
        }
        for name, (given, reason) in refused.items():
            if given:
                raise InvalidInput(
                    name, getattr(self, name), f"not with distillation: {reason}", "Leave it out."
                )

    def _check_checkpointing(self) -> None:
        """Reentrant checkpointing runs the layers without gradients: hooks would capture nothing to learn."""
        name = f"{CHECKPOINTING}_kwargs"
        options = cast("dict[str, Any]", getattr(self, name) or {})
        if options.get("use_reentrant"):
            raise InvalidInput(
                name,
                options,
                "not with distillation: hooks need use_reentrant: False",
                "Leave it out.",
            )
        if getattr(self, CHECKPOINTING):
            # Else it is True: Transformers 4.57's default, and on 5 torch's own beside other options.
            setattr(self, name, {**options, "use_reentrant": False})

    def accelerate_environment(self) -> AbstractContextManager[None]:
        """Where an Accelerator is made for these arguments: the environment that they want it to find."""
        return cast("AbstractContextManager[None]", patch_environment(**self._for_accelerate))

    @property
    def n_gpu(self) -> int:
        """One GPU a process: the replicas of DataParallel would leave the hooks behind."""
        return min(1, int(super().n_gpu))

    @property
    def device(self) -> torch.device:
        """The device, without the index that Accelerate gives CPU ranks: torch.load knows no "cpu:0"."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


def training_arguments(section: TrainingSection, output_dir: Path, **extra: Any) -> DistillationArguments:
    """The arguments for a recipe's training section, on either line of Transformers.

    The section's own `training_arguments` come after its fields, `extra` after both. Where they say
    nothing else, the loss is logged and a checkpoint saved at the end of each epoch, and the last one kept.

    Args:
        section: The training section.
        output_dir: Where checkpoints go.
        **extra: Further fields of DistillationArguments, such as objectives, seed or report_to.

    Raises:
        InvalidInput: If an argument is unknown to the installed Transformers or refused by
            DistillationArguments.
    """
    device = join_processes().device
    precision = resolve_precision(device, section.precision)
    if precision == "fp16" and device.type == "cpu":
        raise InvalidInput(
            "precision", precision, "processors compute in auto, fp32 or bf16", "Choose one of these."
        )
    known = {argument.name for argument in fields(DistillationArguments) if argument.init}
    arguments: dict[str, Any] = {
        "output_dir": str(output_dir),
        "num_train_epochs": section.epochs,
        "per_device_train_batch_size": section.batch_size,
        "learning_rate": section.learning_rate,
        # Transformers 5 takes a fraction as warmup_steps, 4 has an argument of its own.
        "warmup_ratio" if "warmup_ratio" in known else "warmup_steps": section.warmup_fraction,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "dropout": section.dropout,
        "gradient_accumulation_steps": section.gradient_accumulation_steps,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type != "cpu",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "steps" if "logging_steps" in section.training_arguments else "epoch",
        **section.training_arguments,
        **extra,
    }
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise InvalidInput(
                "training_arguments",
                name,
                "must be a field of transformers.TrainingArguments",
                f"Did you mean {near[0]}?" if near else "Remove it.",
            )
    _check_types(section.training_arguments)
    try:
        # `accelerate launch` may have another one there; the recipe's counts.
        with patch_environment(accelerate_mixed_precision="no" if precision == "fp32" else precision):
            return DistillationArguments(**arguments)
    except InvalidInput:
        raise
    except (ImportError, TypeError, ValueError) as error:
        raise InvalidInput(
            "training_arguments",
            dict(section.training_arguments),
            f"Transformers refuses it: {' '.join(str(error).split())}",
            "Change the value.",
        ) from error


def _left_for_accelerate() -> dict[str, str]:
    names = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


def _check_types(given: Mapping[str, Any]) -> None:
    """Numbers where the default is one, likewise true or false: TrainingArguments takes anything."""
    for argument in fields(DistillationArguments):
        default, value = argument.default, given.get(argument.name)
        kind, wanted = (bool, "true or false") if isinstance(default, bool) else (int | float, "a number")
        if argument.name in given and isinstance(default, int | float) and not isinstance(value, kind):
            raise InvalidInput(
                f"training_arguments.{argument.name}", value, f"must be {wanted}", "Change the value."
            )


def _parsed(objectives: dict[str, Any] | str | None) -> dict[str, Any]:
    if objectives is None:
        return {"logits": {}, "hidden": {}}
    if isinstance(objectives, str):
        try:
            objectives = cast("dict[str, Any]", json.loads(objectives))
        except json.JSONDecodeError as error:
            raise InvalidInput(
                "objectives", objectives, f"must be JSON ({error})", 'Write {"logits": {"weight": 1.0}}.'
            ) from error
    return objectives
