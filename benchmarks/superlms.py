"""What the benchmarks of trained SuperLMs share: text, the SuperLMs of the MiniLM teacher's spaces, tasks."""

from __future__ import annotations

import argparse
import gzip
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow.parquet
import torch
from harness import parser

from hf_kdnas import Architecture, Recipe, SearchSpace, load_recipe, workflows
from hf_kdnas.processes import join_processes
from hf_kdnas.recipe import EvaluationSection, recipe_fingerprint, recipe_to_yaml
from hf_kdnas.run import RunFolder, write_text
from hf_kdnas.space import DIMENSIONS
from hf_kdnas.superlm.plan import plan_superlm
from hf_kdnas.superlm.run import SuperLMRun

# Of both, so many lines at a time: what is read first is of both kinds.
TEXTS, LINES = ("wikitext-2", "novels"), 50
TITLES = {"mrpc": "MRPC", "rte": "RTE", "sst2": "SST-2"}
# Students of a few million parameters want more than BERT's usual rate.
RATE = 1e-4


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
    made = parser(description)
    made.add_argument("--data", type=Path, default=os.environ.get("KDNAS_DATA"), help="$KDNAS_DATA")
    options = made.parse_args()
    missing = options.data is None or [
        name for name in ("text", *(f"glue/{task}" for task in TITLES)) if not (options.data / name).is_dir()
    ]
    if missing:
        made.error(f"--data (or KDNAS_DATA) must be a folder that holds text/ and glue/: got {options.data}")
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
                f"data.path={self._texts()}",
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
        section = EvaluationSection(
            data=str(self._tasks()),
            tasks=list(tasks),
            seeds=list(seeds),
            learning_rates=[RATE],
            epochs=[self.scale.epochs],
        )
        folder = self.folder / "evaluated" / student.relative_to(self.folder)
        results = workflows.evaluate(str(student), section, output_dir=str(folder), resume=True)
        return {task: results["tasks"][task]["scores"]["validation"]["accuracy"] for task in tasks}

    def _texts(self) -> Path:
        """WikiText-2 and the novels as one; what a recipe's `data.path` takes."""
        joined = self.folder / "texts"
        for split in ("train", "validation"):
            file = joined.with_name(f"{joined.name}.{split}.txt")
            if not file.exists():
                write_text(
                    file, "".join(_in_turn([self.data / f"text/{name}.{split}.txt.gz" for name in TEXTS]))
                )
        return joined

    def _tasks(self) -> Path:
        """GLUE's tasks, with a part of SST-2."""
        folder = self.folder / "glue"
        if not folder.exists():
            folder.mkdir(parents=True)
            for task in ("mrpc", "rte"):
                (folder / task).symlink_to((self.data / "glue" / task).resolve())
            source, sst2 = self.data / "glue" / "sst2", folder / "sst2"
            sst2.mkdir()
            rows = pyarrow.parquet.read_table(source / "train.parquet")
            part = sorted(random.Random(0).sample(range(len(rows)), self.scale.sentences))
            pyarrow.parquet.write_table(rows.take(part), sst2 / "train.parquet")
            (sst2 / "validation.parquet").symlink_to((source / "validation.parquet").resolve())
        return folder


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


def _in_turn(files: Sequence[Path]) -> Iterator[str]:
    """Lines of all files, some of each in turn, to the end of the longest."""
    with ExitStack() as stack:
        streams = [stack.enter_context(gzip.open(file, "rt", encoding="utf-8")) for file in files]
        while lines := [line for stream in streams for line in islice(stream, LINES)]:
            yield from lines
