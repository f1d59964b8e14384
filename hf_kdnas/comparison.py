"""The same student from several signals, side by side: what each signal is worth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hf_kdnas.processes import from_first
from hf_kdnas.tasks import evaluate_model

if TYPE_CHECKING:
    from hf_kdnas.architecture import Architecture
    from hf_kdnas.recipe import CompareSection, Recipe
    from hf_kdnas.stages import Stages


def compared_sets(recipe: Recipe) -> dict[str, dict[str, dict[str, Any]]]:
    """The sets of objectives that a recipe compares, with the labels alone first where it doesn't list them.

    Args:
        recipe: The recipe; without `compare` it compares none.
    """
    if recipe.compare is None:
        return {}
    listed = recipe.compare.objectives
    if recipe.data.task == "sentence-similarity" or any(set(each) == {"task"} for each in listed.values()):
        return listed
    return {"no distillation": {"task": {}}, **listed}


def compare(stages: Stages, section: CompareSection, architecture: Architecture) -> list[dict[str, Any]]:
    """Distil one shape with each set of objectives and each seed, all else being equal.

    Made texts have no labels: from labels alone a student learns in fewer steps.

    Students that are there already are not trained again.

    Args:
        stages: A run whose teacher and signals are prepared.
        section: The recipe's, for the seeds.
        architecture: The shape.

    Returns:
        For each set its `name`, `objectives`, `seeds`, and, in their order, `qualities` on the reporting
        split and `selection_qualities`.
    """
    task, processes = stages.plan.task, stages.processes
    arms = []
    for name, objectives in compared_sets(stages.recipe).items():
        chosen, reported = [], []
        for seed in section.seeds:
            stages.narrator.say(f"  {name}, seed {seed}")
            distillation = stages.distillation(objectives, seed)
            chosen.append(distillation.quality(architecture))
            quality = math.nan
            if processes.is_main_process:
                student = distillation.load(architecture).to(processes.device)
                quality = evaluate_model(student, task.reporting, task)[task.metric]
            reported.append(from_first(quality, processes))
        arms.append(
            {
                "name": name,
                "objectives": objectives,
                "seeds": section.seeds,
                "qualities": reported,
                "selection_qualities": chosen,
            }
        )
    return arms
