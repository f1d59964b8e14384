"""What the benchmarks of trained SuperLMs share: text, the SuperLMs of the MiniLM teacher's spaces, tasks."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import prepared
import torch
from prepared import Prepared

from hf_kdnas import Architecture, Recipe, SearchSpace, load_recipe
from hf_kdnas.processes import join_processes
from hf_kdnas.recipe import recipe_fingerprint, recipe_to_yaml
from hf_kdnas.run import RunFolder
from hf_kdnas.space import DIMENSIONS
from hf_kdnas.superlm.plan import plan_superlm
from hf_kdnas.superlm.run import SuperLMRun


@dataclass(frozen=True)
class Scale:
    """How large a benchmark is.

    Attributes:
        steps: Of the SuperLM of each of the three spaces.
        held_out: Windows of held-out text.
        sentences: Of SST-2's training split.
        epochs: Of each fine-tuning.
    """

    steps: int
    held_out: int
    sentences: int
    epochs: float


SCALES = {
    "full": Scale(180, 128, 10_000, 3.0),
    "quick": Scale(30, 32, 2_000, 1.0),
    "gpu": Scale(3000, 256, 10_000, 3.0),
}


def arguments(description: str) -> tuple[argparse.Namespace, SuperLMs]:
    """The command line, and the SuperLMs of its scale."""
    options = prepared.arguments(description)
    scale = "quick" if options.quick else "gpu" if torch.cuda.is_available() else "full"
    return options, SuperLMs(options.runs / f"superlms-{scale}", options.data, SCALES[scale])


@dataclass(frozen=True)
class SuperLMs:
    """SuperLMs of the MiniLM teacher, and what their students are worth; all is kept in one folder.

    Attributes:
        folder: Holds the run folders, the text and the tasks.
        data: Holds `text/` and `glue/`.
        scale: How large all is.
    """

    folder: Path
    data: Path
    scale: Scale

    @property
    def suffix(self) -> str:
        """What the scale adds to a benchmark's name."""
        scale = self.folder.name.removeprefix("superlms-")
        return "" if scale == "full" else f"-{scale}"

    def recipe(self, name: str = "three", overrides: Iterable[str] = ()) -> Recipe:
        """The recipe of a run; the one by the name `three` trains the three spaces."""
        return load_recipe(
            "autodistil_minilm",
            [
                f"output_dir={self.folder / name}",
                f"data.path={self.prepared.texts()}",
                f"superlm.held_out={self.scale.held_out}",
                f"superlm.training.steps={self.scale.steps}",
                f"superlm.training.evaluation_steps={max(1, self.scale.steps // 5)}",
                *overrides,
            ],
        )

    def opened(self, recipe: Recipe, spaces: Mapping[str, SearchSpace]) -> SuperLMRun:
        """The run of a recipe over other spaces than it can name."""
        plan = replace(plan_superlm(recipe), spaces=dict(spaces))
        folder = RunFolder(Path(recipe.output_dir))
        folder.open(recipe_to_yaml(recipe), recipe_fingerprint(recipe, "superlm"))
        run = SuperLMRun(plan, folder, join_processes())
        run.keep_settings()
        return run

    def fine_tuned(self, student: Path, tasks: Sequence[str], seeds: Sequence[int]) -> dict[str, list[float]]:
        """Accuracy on the validation split of each task, seed by seed, as `kdnas evaluate` finds it."""
        folder = self.folder / "evaluated" / student.relative_to(self.folder)
        return self.prepared.fine_tuned(student, tasks, seeds, self.scale.epochs, folder)

    @property
    def prepared(self) -> Prepared:
        """Text and tasks of this scale."""
        return Prepared(self.folder, self.data, self.scale.sentences)


def union(spaces: Iterable[SearchSpace]) -> SearchSpace:
    """One space of the members of several that are cut from a teacher."""
    parts = list(spaces)
    dimensions = {
        name: sorted({value for space in parts for value in space.dimensions[name]}) for name in DIMENSIONS
    }
    return SearchSpace(
        dimensions, {"of one of them": lambda member: any(member in space for space in parts)}, ratio=True
    )


def only(member: Architecture) -> SearchSpace:
    """The space of one member."""
    return SearchSpace({name: [getattr(member, name)] for name in DIMENSIONS})
