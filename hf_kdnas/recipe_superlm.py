"""The part of a recipe that `kdnas superlm` reads."""

# ruff: noqa: RUF009
# `option` is dataclasses.field with a help text and limits: its calls are no shared defaults.
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hf_kdnas.recipe_files import option


@dataclass(frozen=True, kw_only=True)
class SuperLMTrainingSection:
    """How a SuperLM is trained."""

    steps: int = option(10_000, "optimiser steps of each SuperLM", least=1)
    batch_size: int = option(32, "windows of text per batch, over all devices", least=1)
    gradient_accumulation_steps: int = option(1, "batches per optimiser step", least=1)
    random_subnets: int = option(
        2, "members drawn for each step, beside the largest and the smallest", least=0
    )
    learning_rate: float = option(4e-5, "highest learning rate; it decays linearly to 0", above=0)
    warmup_fraction: float = option(0.01, "part of the steps with a rising learning rate", least=0, most=1)
    weight_decay: float = option(0.01, "AdamW's weight decay", least=0)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm", above=0)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "arithmetic of the forward pass; auto is bf16 where the hardware computes in it, else fp32"
    )
    not_finite: Literal["stop", "skip"] = option(
        "stop",
        "what to do where a member's loss or gradient is not finite: stop, or leave the step out (at most "
        "10 in a row)",
    )
    save_steps: int = option(500, "steps from one checkpoint to the next", least=1)
    evaluation_steps: int = option(
        500, "steps from one look at the held-out loss of three members to the next", least=1
    )


@dataclass(frozen=True, kw_only=True)
class SuperLMSection:
    """Spaces of students, each with one set of weights."""

    spaces: dict[str, dict[str, Any]] = option(
        {},
        "spaces by a name of yours, each written as the section `space` (`tiny: {preset: autodistil-tiny}`); "
        "empty cuts `partitions` of them from the teacher",
    )
    partitions: int = option(
        3, "number of spaces that are cut from the teacher, from small to large", least=1
    )
    layers: Literal["alternate", "spread", "first", "last"] = option(
        "alternate", "which layers a shallower member has: AutoDistil's floor(i L / l), or others"
    )
    relation_heads: int | None = option(
        None,
        "number of relation heads, one for all spaces and their teacher; null is the largest up to 16 that "
        "divides every attention width",
        least=1,
    )
    objectives: dict[str, dict[str, Any]] = option(
        {"relations": {"loss": "mse"}},
        "losses by name, with options and weights as in distillation.objectives; relations are those of the "
        "teacher's last layer; members are ranked by them, else by attention, else by hidden; mlm (for a "
        "teacher with a masked-LM head) may stand beside",
    )
    initialisation: Literal["random", "slice", "project"] = option(
        "project", "a SuperLM's first weights, as for students"
    )
    held_out: int = option(512, "windows of held-out text that members are compared on", least=1)
    training: SuperLMTrainingSection = option(SuperLMTrainingSection(), "how each SuperLM is trained")
