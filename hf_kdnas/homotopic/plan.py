"""What a HomoDistil recipe comes to, checked as far as can be before any expensive work."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.errors import InvalidInput
from hf_kdnas.homotopic.compaction import OPTIMISERS
from hf_kdnas.homotopic.run import total_steps
from hf_kdnas.homotopic.schedule import Segment, plan_segments
from hf_kdnas.homotopic.target import is_part_of, require_part_of, require_stock_heads, resolve_target
from hf_kdnas.plan import plan_distillation, plan_search
from hf_kdnas.recipe import recipe_options
from hf_kdnas.recipe_homotopic import HomotopicSection
from hf_kdnas.tasks import TASKS
from hf_kdnas.teacher import load_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hf_kdnas.architecture import Architecture
    from hf_kdnas.plan import Plan
    from hf_kdnas.recipe import Recipe

# Decided by the section `homotopic`: every cut needs a whole checkpoint.
_SAVING = ("save_strategy", "save_steps", "save_only_model", "save_safetensors")


def plan_homotopic(recipe: Recipe) -> Plan:
    """Load what is cheap, and check that everything in the recipe fits together.

    Returns:
        A plan whose space has the target as its only member.

    Raises:
        InvalidInput: Naming the first thing that doesn't.
        MissingPackage: If a package is missing, with the line that installs it.
    """
    section = recipe.homotopic
    if section is None or section.target is None:
        raise InvalidInput(
            "homotopic" if section is None else "homotopic.target",
            "nothing",
            "this recipe doesn't say what the student is narrowed to",
            "Set it (homotopic: {target: 0.5}), or take kdnas search or kdnas distill.",
        )
    _check_settings(recipe)
    _check_unread(recipe)
    target = resolve_target(section.target, load_config(recipe.teacher, TASKS[recipe.data.task].head))
    plan = plan_distillation(replace(recipe, student=target.key))
    return _checked(replace(plan, workflow="homotopic", recipe=recipe))


def plan_homotopic_search(recipe: Recipe) -> Plan:
    """The plan of a search whose finalists and hand-crafted shapes are narrowed from their teacher.

    Returns:
        A plan whose space has no members but those that are left of the teacher when parts are removed.

    Raises:
        InvalidInput: Naming the first thing that doesn't fit.
        MissingPackage: If a package is missing, with the line that installs it.
    """
    _check_settings(recipe)
    plan = plan_search(recipe)
    require_stock_heads(plan.config)
    for name, shape in plan.baselines.items():
        require_part_of(f"search.baselines.{name}", shape, plan.config)
    why = f"search.finalise: homotopic (a part of {plan.teacher.key}, with heads no larger than its own)"
    space = plan.space.restricted({why: lambda member: is_part_of(member, plan.config)})
    return _checked(replace(plan, space=space))


def pruning_of(recipe: Recipe) -> HomotopicSection:
    """How a recipe's students are narrowed."""
    return recipe.homotopic or HomotopicSection()


def segments_of(plan: Plan, target: Architecture) -> list[Segment]:
    """The schedule of one of a plan's students.

    Raises:
        InvalidInput: If there are too few steps for it.
    """
    section = pruning_of(plan.recipe)
    return plan_segments(
        plan.config,
        target,
        total_steps(plan.recipe.distillation.training, len(plan.distilled_rows)),
        start=section.start,
        end=section.end,
        compactions=section.compactions,
    )


def objectives_of(plan: Plan, target: Architecture) -> dict[str, Any]:
    """The losses of one of a plan's students.

    Relations have one number of heads over all segments: another one is another loss.
    """
    objectives = {name: dict(options or {}) for name, options in plan.recipe.distillation.objectives.items()}
    relations = objectives.get("relations")
    if relations is not None and relations.get("relation_heads") is None:
        widths = [each.shape.attention_size for each in segments_of(plan, target)]
        common = math.gcd(plan.teacher.attention_size, *widths)
        most = plan.teacher.num_attention_heads
        relations["relation_heads"] = max(heads for heads in range(1, most + 1) if common % heads == 0)
    return objectives


def _check_settings(recipe: Recipe) -> None:
    pruning_of(recipe).check()
    training = recipe.distillation.training
    for name in set(_SAVING) & training.training_arguments.keys():
        raise InvalidInput(
            f"distillation.training.training_arguments.{name}",
            training.training_arguments[name],
            "each cut begins at a whole checkpoint",
            "Leave it out: homotopic.save_steps says how often there are others.",
        )
    if training.training_arguments.get("ignore_data_skip"):
        raise InvalidInput(
            "distillation.training.training_arguments.ignore_data_skip",
            True,
            "each segment goes on in the epoch where the last one was cut",
            "Leave it out.",
        )
    optimiser = training.training_arguments.get("optim", OPTIMISERS[0])
    if optimiser not in OPTIMISERS:
        raise InvalidInput(
            "distillation.training.training_arguments.optim",
            optimiser,
            f"those that can be cut with a student are {', '.join(OPTIMISERS)}",
            "Leave it out: AdamW will do.",
        )


def _check_unread(recipe: Recipe) -> None:
    """Refuse what `kdnas homotopic` would pass over."""
    usual = {option.key: option.value for option in recipe_options()}
    begins, target = "here a student begins as its teacher", "here homotopic.target says what it is"
    compared = recipe.compare and [*recipe.compare.objectives]
    for key, given, reason in (
        ("distillation.superlm", recipe.distillation.superlm, begins),
        ("distillation.initialisation", recipe.distillation.initialisation, begins),
        ("student", recipe.student, target),
        ("student_revision", recipe.student_revision, target),
        ("compare", compared, "here one student is made, from distillation.objectives"),
    ):
        if given != usual[key]:
            raise InvalidInput(key, given, reason, "Leave it out, or take kdnas distill.")


def _checked(plan: Plan) -> Plan:
    section = pruning_of(plan.recipe)
    for target in {plan.space.members[0], plan.space.members[-1], *plan.baselines.values()}:
        objectives, segments = objectives_of(plan, target), segments_of(plan, target)
        for segment in segments:
            _check_on_the_way(objectives, segment.shape, target, plan.teacher, section.maps)
        _check_maps(objectives, segments[0].shape, target, plan.teacher, section.maps)
    relations = plan.recipe.distillation.objectives.get("relations") or {}
    if relations.get("relation_heads") is not None:
        # They have to divide every width on the way to whichever member is a finalist.
        for target in plan.space:
            for segment in segments_of(plan, target):
                _check_on_the_way({"relations": relations}, segment.shape, target, plan.teacher, section.maps)
    return plan


def _criterion(
    objectives: Mapping[str, Mapping[str, Any]], student: Architecture, teacher: Architecture, maps: str
) -> DistillationCriterion:
    kept = torch.eye(teacher.hidden_size, student.hidden_size) if maps == "kept" else None
    return DistillationCriterion(objectives, student, teacher, projection=kept)


def _check_on_the_way(
    objectives: Mapping[str, Mapping[str, Any]],
    shape: Architecture,
    target: Architecture,
    teacher: Architecture,
    maps: str,
) -> None:
    """Refuse objectives that don't suit one of the shapes between the teacher's and the target's."""
    try:
        _criterion(objectives, shape, teacher, maps)
    except InvalidInput as error:
        raise InvalidInput(
            error.field,
            error.given,
            f"{error.allowed} (of {shape.key}, on the way to {target.key})",
            error.remedy,
        ) from error


def _check_maps(
    objectives: Mapping[str, Mapping[str, Any]],
    wide: Architecture,
    narrow: Architecture,
    teacher: Architecture,
    maps: str,
) -> None:
    """Refuse objectives that keep something of the student's width and don't say how it is cut."""
    for name, options in objectives.items():
        made = [_criterion({name: options}, shape, teacher, maps) for shape in (wide, narrow)]
        first, last = (each.state_dict() for each in made)
        for key in first.keys() | last.keys():
            known = key in first and key in last
            if not known or (first[key].shape != last[key].shape and not made[0].student_units(key)):
                raise InvalidInput(
                    "distillation.objectives",
                    name,
                    "it keeps something of the student's width that can't be cut with the student",
                    "Set homotopic.maps: kept, leave it out, or give your own objective student_units.",
                )
