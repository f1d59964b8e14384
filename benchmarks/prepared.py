"""Text and tasks, prepared of the folder that KDNAS_DATA names: what models learn from and are scored by."""

from __future__ import annotations

import argparse
import gzip
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow.parquet
from harness import parser

from hf_kdnas import workflows
from hf_kdnas.recipe import EvaluationSection
from hf_kdnas.run import atomic_folder, write_text

# Of both, so many lines at a time: what is read first is of both kinds.
TEXTS, LINES = ("wikitext-2", "novels"), 50
TITLES = {"mrpc": "MRPC", "rte": "RTE", "sst2": "SST-2"}
# Students of a few million parameters want more than BERT's usual rate.
RATE = 1e-4


def arguments(description: str) -> argparse.Namespace:
    """The command line of a benchmark that reads them."""
    made = parser(description)
    made.add_argument("--data", type=Path, default=os.environ.get("KDNAS_DATA"), help="$KDNAS_DATA")
    options = made.parse_args()
    missing = options.data is None or [
        name for name in ("text", *(f"glue/{task}" for task in TITLES)) if not (options.data / name).is_dir()
    ]
    if missing:
        made.error(f"--data (or KDNAS_DATA) must be a folder that holds text/ and glue/: got {options.data}")
    return options


@dataclass(frozen=True)
class Prepared:
    """Text and tasks in a folder.

    Attributes:
        folder: For the joined text and the tasks.
        data: Holds `text/` and `glue/`.
        sentences: Of SST-2's training split.
    """

    folder: Path
    data: Path
    sentences: int

    def fine_tuned(
        self, student: Path, tasks: Sequence[str], seeds: Sequence[int], epochs: float, folder: Path
    ) -> dict[str, list[float]]:
        """Accuracy on the validation split of each task, seed by seed, as `kdnas evaluate` finds it."""
        section = EvaluationSection(
            data=str(self.tasks()),
            tasks=list(tasks),
            seeds=list(seeds),
            learning_rates=[RATE],
            epochs=[epochs],
        )
        results = workflows.evaluate(str(student), section, output_dir=str(folder), resume=True)
        return {task: results["tasks"][task]["scores"]["validation"]["accuracy"] for task in tasks}

    def texts(self) -> Path:
        """WikiText-2 and the novels as one; what a recipe's `data.path` takes."""
        joined = self.folder / "texts"
        for split in ("train", "validation"):
            file = joined.with_name(f"{joined.name}.{split}.txt")
            if not file.exists():
                write_text(
                    file, "".join(_in_turn([self.data / f"text/{name}.{split}.txt.gz" for name in TEXTS]))
                )
        return joined

    def tasks(self) -> Path:
        """GLUE's tasks, with a part of SST-2."""
        folder = self.folder / "glue"
        if not folder.exists():
            with atomic_folder(folder) as unfinished:
                self._make_tasks(unfinished)
        return folder

    def _make_tasks(self, folder: Path) -> None:
        for task in ("mrpc", "rte"):
            (folder / task).symlink_to((self.data / "glue" / task).resolve())
        source, sst2 = self.data / "glue" / "sst2", folder / "sst2"
        sst2.mkdir()
        rows = pyarrow.parquet.read_table(source / "train.parquet")
        part = sorted(random.Random(0).sample(range(len(rows)), self.sentences))
        pyarrow.parquet.write_table(rows.take(part), sst2 / "train.parquet")
        (sst2 / "validation.parquet").symlink_to((source / "validation.parquet").resolve())


def _in_turn(files: Sequence[Path]) -> Iterator[str]:
    """Lines of all files, some of each in turn, to the end of the longest."""
    with ExitStack() as stack:
        streams = [stack.enter_context(gzip.open(file, "rt", encoding="utf-8")) for file in files]
        while lines := [line for stream in streams for line in islice(stream, LINES)]:
            yield from lines
