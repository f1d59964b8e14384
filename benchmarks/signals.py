"""What a teacher's kept signals cost: building them beside its bare forward, reading them beside a step.

GLUE SST-2 with the MiniLM teacher. Building is all of it: the content's key, forward, taking out the padding,
half precision, writing; the forward alone goes over the same batches. Reading is that of a 3-layer student's
batches of 32, spread over all texts, from memory-mapped files that the system still holds in memory, as after
a build. Arms take turns, round by round; a ratio is one within a round.

Takes some 20 minutes on 2 CPU cores; `--quick` some 3 minutes: bf16 alone, fewer texts and rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Benchmark, alternately, arguments, middle, ratios
from trainers import Bench, Settings, mini_lm, sst2

from hf_kdnas import TeacherSignals
from hf_kdnas.distill.data import pad
from hf_kdnas.distill.signal_writer import CPU_BATCH_TOKENS, token_batches
from hf_kdnas.memory import keep_freed_memory

TEXTS, STEPS, ROUNDS = 10_000, 40, 5
QUICK_TEXTS, QUICK_STEPS, QUICK_ROUNDS = 4_000, 15, 3
BATCH = 32

LOSSES = {
    "logits": {"logits": {}},
    "logits + hidden": {"logits": {}, "hidden": {"layers": "uniform"}},
    "logits + relations": {"logits": {}, "relations": {}},
}
COMPUTE, QUICK_COMPUTE = ("fp32", "bf16"), ("bf16",)
# Percent: least of the bare forward's texts a second, most of a step's milliseconds.
BUILDING, READING = 95, 5


class Signals:
    """A teacher, its texts, and a student that learns from some of them."""

    def __init__(self, folder: Path, texts: int, steps: int, rounds: int) -> None:
        self.folder = folder
        self.rounds = rounds
        self.teacher = mini_lm(attention="eager").eval()
        rows = sst2(texts)
        self.ids = [row["input_ids"] for row in rows]
        learned = rows[:: len(rows) // (steps * BATCH)][: steps * BATCH]
        self.bench = Bench(self.teacher, 3, learned, BATCH, folder, torch.device("cpu"))

    def building(self, compute: str) -> dict[str, Any]:
        """Texts a second, of the teacher alone and of building what each loss reads."""
        found_again: dict[str, float] = {}
        size: dict[str, int] = {}

        def built(losses: Mapping[str, Any], name: str, number: int) -> float:
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                seconds, signals = _timed(self.build, losses, Path(scratch) / "signals", compute)
                found_again[name], _ = _timed(self.build, losses, signals.folder, compute)
                size[name] = sum(file.stat().st_size for file in signals.folder.iterdir())
            return len(self.ids) / seconds

        arms = {"teacher alone": partial(self.forward, compute)}
        arms |= {name: partial(built, losses, name) for name, losses in LOSSES.items()}
        rates = alternately(arms, self.rounds)
        note = "; ".join(
            f"{name} {size[name] / 1e6:.0f} MB, found again in {found_again[name]:.2f} s" for name in LOSSES
        )
        return {"unit": "texts a second", "measured": rates, "note": note}

    def build(self, losses: Mapping[str, Any], folder: Path, compute: str) -> TeacherSignals:
        """Build what losses read, or find it."""
        names = self.bench.needed(losses)
        return TeacherSignals.build(self.teacher, self.ids, names, folder, compute=compute)

    @torch.inference_mode()
    def forward(self, compute: str, number: int) -> float:
        """Texts a second of the teacher alone."""
        start = time.perf_counter()
        lengths = np.array([len(ids) for ids in self.ids])
        with torch.autocast("cpu", torch.bfloat16, enabled=compute == "bf16"):
            for indices in token_batches(lengths, CPU_BATCH_TOKENS):
                ids = [self.ids[index] for index in indices]
                padded, mask = pad(ids, self.teacher.config.pad_token_id, max(map(len, ids)))
                self.teacher(input_ids=padded, attention_mask=mask)
        return len(self.ids) / (time.perf_counter() - start)

    def reading(self, name: str, compute: str) -> dict[str, Any]:
        """Milliseconds a batch, of the student's step and of reading the signals for it."""
        losses, settings = LOSSES[name], Settings(bf16=compute == "bf16")
        signals = self.build(losses, self.folder / name, compute)

        def step(number: int) -> float:
            return 1000 * BATCH / self.bench.distilled(number, losses, signals, settings)

        def read(number: int) -> float:
            batches = self.bench.batches(number, by_length=True)
            rows = [[self.bench.rows[place] for place in batch] for batch in batches]
            start = time.perf_counter()
            for batch in rows:
                longest = max(len(row["input_ids"]) for row in batch)
                signals.collate([row["index"] for row in batch], longest)
            return 1000 * (time.perf_counter() - start) / len(rows)

        return {"unit": "ms a batch", "measured": alternately({"a step": step, "reading": read}, self.rounds)}


def _timed(function: Any, *args: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def main() -> None:
    """Run what is missing, and print the table and the targets."""
    options = arguments(__doc__ or "")
    keep_freed_memory()  # as in every run of a recipe
    benchmark = Benchmark("signals-quick" if options.quick else "signals", options.cells)
    sizes = (QUICK_TEXTS, QUICK_STEPS, QUICK_ROUNDS) if options.quick else (TEXTS, STEPS, ROUNDS)
    with tempfile.TemporaryDirectory() as scratch:
        signals = Signals(Path(scratch), *sizes)
        computes = QUICK_COMPUTE if options.quick else COMPUTE
        for compute in computes:
            name = f"building, {compute}"
            cell = benchmark.cell(name, partial(signals.building, compute))
            for arm in LOSSES:
                found = of_the_first(cell, arm)
                benchmark.target(
                    bool(found) and statistics.median(found) >= BUILDING,
                    f"{name}: {arm}, of the teacher alone",
                    percent(found),
                    f"{BUILDING} %",
                )
        for losses, compute in product(LOSSES, computes):
            name = f"reading {losses}, {compute}"
            found = of_the_first(benchmark.cell(name, partial(signals.reading, losses, compute)), "reading")
            benchmark.target(
                bool(found) and statistics.median(found) < READING,
                f"{name}, of a step",
                percent(found),
                f"below {READING} %",
            )
    benchmark.finish(
        ("cell", "arm", "unit", "measured", "of the first"),
        [
            (name, arm, cell["unit"], middle(measured), percent(of_the_first(cell, arm)))
            for name, cell in benchmark.cells.items()
            for arm, measured in cell["measured"].items()
        ],
    )


def of_the_first(cell: Mapping[str, Any] | None, arm: str) -> list[float]:
    """An arm's figures in percent of those of the cell's first arm; empty if the cell was not run."""
    if cell is None:
        return []
    measured = cell["measured"]
    return [100 * each for each in ratios(measured[arm], next(iter(measured.values())))]


def percent(values: Sequence[float]) -> str:
    """Median, least and most."""
    return f"{middle(values)} %" if values else "not run"


if __name__ == "__main__":
    main()
