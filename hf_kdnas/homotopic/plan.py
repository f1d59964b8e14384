"""What a HomoDistil recipe comes to, checked as far as can be before any expensive work."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.errors import InvalidInput
from hf_kdnas.homotopic.run import total_steps
from hf_kdnas.homotopic.schedule import Segment, plan_segments
from hf_kdnas.homotopic.target import resolve_target
from hf_kdnas.plan import Plan, plan_distillation
from hf_kdnas.tasks import TASKS
from hf_kdnas.teacher import load_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hf_kdnas.architecture import Architecture
    from hf_kdnas.recipe import Recipe
    from hf_kdnas.recipe_homotopic import HomotopicSection

# Decided by the section `homotopic`: every cut needs a whole checkpoint.
_SAVING = ("save_strategy", "save_steps", "save_only_model")


@dataclass(frozen=True)
class HomotopicPlan(Plan):
    """A HomoDistil recipe, resolved; the target is the only member of its space.

    Attributes:
        section: The recipe's own section.
        segments: The schedule.
    """

    section: HomotopicSection
    segments: tuple[Segment, ...]


def plan_homotopic(recipe: Recipe) -> HomotopicPlan:
    """Load what is cheap, and check that everything in the recipe fits together.

    Raises:
        InvalidInput: Naming the first thing that doesn't.
        MissingPackage: If a package is missing, with the line that installs it.
    """
    section = recipe.homotopic
    if section is None:
        raise InvalidInput(
            "homotopic",
            "nothing",
            "this recipe has no such section",
            "Add one (homotopic: {target: 0.5}), or take kdnas search or kdnas distill.",
        )
    training = recipe.distillation.training
    for name in set(_SAVING) & training.training_arguments.keys():
        raise InvalidInput(
            f"distillation.training.training_arguments.{name}",
            training.training_arguments[name],
            "each cut begins at a whole checkpoint",
            "Leave it out: homotopic.save_steps says how often there are others.",
        )
    if recipe.distillation.superlm is not None:
        raise InvalidInput(
            "distillation.superlm",
            recipe.distillation.superlm,
            "here a student begins as its teacher",
            "Leave it out, or take kdnas distill.",
        )
    target = resolve_target(section.target, load_config(recipe.teacher, TASKS[recipe.data.task].head))
    plan = plan_distillation(replace(recipe, student=target.key))
    segments = plan_segments(
        plan.config,
        target,
        total_steps(training, len(plan.task.train)),
        start=section.start,
        end=section.end,
        compactions=section.compactions,
    )
    _check_maps(recipe.distillation.objectives, segments[0].shape, target, plan.teacher, section.maps)
    known = {each.name: getattr(plan, each.name) for each in fields(plan)}
    known |= {"workflow": "homotopic", "recipe": recipe}
    return HomotopicPlan(**known, section=section, segments=tuple(segments))


def _check_maps(
    objectives: Mapping[str, Mapping[str, Any]],
    wide: Architecture,
    narrow: Architecture,
    teacher: Architecture,
    maps: str,
) -> None:
    """Refuse objectives that keep something of the student's width and don't say how it is cut."""
    for name, options in objectives.items():
        made = [
            DistillationCriterion(
                {name: options},
                shape,
                teacher,
                projection=torch.eye(teacher.hidden_size, shape.hidden_size) if maps == "kept" else None,
            )
            for shape in (wide, narrow)
        ]
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
