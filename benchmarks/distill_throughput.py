"""Steps of distillation against plain fine-tuning, a live teacher and TextBrewer, in samples a second.

On GLUE SST-2 with the MiniLM teacher and students of every second and of every layer, batches of 32. Arms
take turns, round by round; a ratio is one within a round, its median stands beside the least and the most.
A step is Trainer's whole step: collating, forward, losses, backward, clipping, optimiser. The clock starts
after a warm-up and stops after one pass over the same rows for everyone.

The arithmetic bound is what a signal has to cost: multiply-adds of a plain step over those of a step with the
signal (see `bound`).

Takes some 45 minutes on 2 CPU cores (`--cells "3 layers"` runs a part); `--quick` some 4 minutes: the 3-layer
student in fp32, fewer rows and rounds. With a GPU there is one more cell, `GPU`. TextBrewer is wanted for its
part: pip install --no-deps textbrewer==0.2.1 tensorboardX
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from harness import Benchmark, alternately, arguments, middle, ratios
from trainers import PLAIN, Bench, Settings, mini_lm, sst2
from transformers import MPNetConfig, MPNetForSequenceClassification

from hf_kdnas.memory import keep_freed_memory

BATCH = 32
ROUNDS, BATCHES = 5, 50
QUICK_ROUNDS, QUICK_BATCHES = 3, 20
GPU_BATCH = 256

LOGITS = {"logits": {}}
HIDDEN = {"logits": {}, "hidden": {"layers": "uniform"}}
RELATIONS = {"logits": {}, "relations": {}}
# All that any arm reads of the teacher.
SIGNALS = (HIDDEN, RELATIONS)

LABELS = "labels"
# Losses beside labels alone, and the part of the arithmetic bound that is aimed at.
ARMS = {
    "logits": (LOGITS, 0.95),
    "logits + hidden": (HIDDEN, 0.93),
    "logits + hidden, sliced": (HIDDEN, 0.93),
    "logits + relations": (RELATIONS, 0.93),
}
# Times a peer with a live teacher in fp32: ours in fp32 and in bf16.
PEERS = {"TextBrewer": (3.8, 5.0), "Trainer subclass": (3.2, 4.0)}
COMPARED = {"logits": LOGITS, "logits + hidden": HIDDEN}

FP32, BF16 = Settings(), Settings(bf16=True)
# From a live teacher to what a recipe does on a CPU: each step keeps those before it.
STEPS = {
    "live teacher": Settings(live=True, by_length=False, optim="adamw_torch", attention="sdpa"),
    "signals kept": Settings(by_length=False, optim="adamw_torch", attention="sdpa"),
    "batches by length": Settings(optim="adamw_torch", attention="sdpa"),
    "fused AdamW": Settings(attention="sdpa"),
    "eager attention": FP32,
    "bf16": BF16,
}


def bound(bench: Bench, losses: Mapping[str, Any], *, learned: bool) -> float:
    """The rate that arithmetic allows a distillation, that of plain fine-tuning being 1.

    Counted are the multiply-adds of matrix products, three times where there is a gradient (forward, and the
    gradients of both factors), once where there is none. A layer has 12 H^2 + 2 n H a token, n being the
    tokens of a row with padding; a learned map of hidden states H^2 for each pair of layers; relations n H
    for queries, keys and values each, in the student with a gradient and in the teacher without. The map of a
    sliced student is a slice and costs nothing. Not counted: head, norms, softmaxes, errors, optimiser.
    """
    student, teacher = bench.student_shape, bench.shape
    plain = extra = 0
    for batch in bench.batches(0, by_length=True):
        length = max(bench.lengths[row] for row in batch)
        tokens = length * len(batch)
        plain += 3 * len(batch) * student.flops(length)
        if "hidden" in losses and learned:
            extra += 3 * tokens * student.num_hidden_layers * student.hidden_size * teacher.hidden_size
        if "relations" in losses:
            extra += 3 * tokens * length * (3 * student.attention_size + teacher.attention_size)
    return plain / (plain + extra)


def against_labels(bench: Bench, settings: Settings, rounds: int) -> dict[str, Any]:
    """Each signal beside plain fine-tuning on the same batches."""
    signals = bench.signals(SIGNALS)
    arms = {LABELS: partial(bench.on_labels, settings=settings)}
    bounds = {LABELS: 1.0}
    for name, (losses, _) in ARMS.items():
        sliced = torch.eye(bench.shape.hidden_size) if name.endswith("sliced") else None
        bounds[name] = bound(bench, losses, learned=sliced is None)
        arms[name] = partial(
            bench.distilled, losses=losses, signals=signals, settings=settings, projection=sliced
        )
    return {"samples_per_second": alternately(arms, rounds), "bounds": bounds}


def against_peer(
    name: str, peer: Callable[..., float], bench: Bench, losses: Mapping[str, Any], rounds: int
) -> dict[str, Any]:
    """The package in fp32 and in bf16 beside a peer with a live teacher and the same losses."""
    ours = partial(bench.distilled, losses=losses, signals=bench.signals(SIGNALS))
    arms = {
        name: partial(peer, losses=losses),
        "fp32": partial(ours, settings=FP32),
        "bf16": partial(ours, settings=BF16),
    }
    return {"samples_per_second": alternately(arms, rounds)}


def step_by_step(bench: Bench, rounds: int) -> dict[str, Any]:
    """What each step away from a live teacher brings, with logits and hidden states."""
    ours = partial(bench.distilled, losses=HIDDEN, signals=bench.signals(SIGNALS))
    arms = {name: partial(ours, settings=settings) for name, settings in STEPS.items()}
    return {"samples_per_second": alternately(arms, rounds)}


def with_memory_kept(bench: Bench, rounds: int) -> dict[str, Any]:
    """What it brings that a process keeps the memory that it frees, as in every run of a recipe.

    Each arm has a new process, because what is kept once is kept for good.
    """
    ours = partial(bench.distilled, losses=HIDDEN, signals=bench.signals(SIGNALS))

    def measured(number: int, settings: Settings, kept: bool) -> float:
        initializer = keep_freed_memory if kept else None
        with ProcessPoolExecutor(1, get_context("spawn"), initializer) as process:
            return process.submit(ours, number, settings=settings).result()

    arms = {
        f"{name}{', memory kept' if kept else ''}": partial(measured, settings=settings, kept=kept)
        for name, settings in (("fp32", FP32), ("bf16", BF16))
        for kept in (False, True)
    }
    return {"samples_per_second": alternately(arms, rounds)}


def on_gpu(folder: Path, rounds: int) -> dict[str, Any]:
    """A script with a live teacher beside the package, all in bf16, without and with torch.compile.

    The teacher has MPNet's 109 M parameters, drawn at random: their values change no rate.
    """
    teacher = MPNetForSequenceClassification(MPNetConfig(num_labels=2))
    bench = Bench(teacher, 6, sst2(BATCHES * GPU_BATCH), GPU_BATCH, folder, torch.device("cuda"))
    signals = bench.signals([HIDDEN], compute="bf16")
    arms: dict[str, Callable[[int], float]] = {}
    memory: dict[str, int] = {}
    for compiled in (False, True):
        script = replace(PLAIN, attention="eager", bf16=True, compile=compiled)  # MPNet has no other
        ours = Settings(attention="eager", bf16=True, compile=compiled)
        suffix = ", compiled" if compiled else ""
        arms[f"Trainer subclass{suffix}"] = partial(bench.by_subclass, losses=HIDDEN, settings=script)
        arms[f"bf16{suffix}"] = partial(bench.distilled, losses=HIDDEN, signals=signals, settings=ours)

    def measured(name: str, number: int) -> float:
        gc.collect()  # trainers are cycles: what an arm left would count for the next one
        torch.cuda.reset_peak_memory_stats()
        rate = arms[name](number)
        memory[name] = max(memory.get(name, 0), torch.cuda.max_memory_allocated())
        return rate

    rates = alternately({name: partial(measured, name) for name in arms}, rounds)
    tokens = statistics.fmean(bench.lengths)
    notes = [
        f"{name} {statistics.median(rates[name]) * tokens:,.0f} tokens a second, {size / 1e9:.2f} GB at most"
        for name, size in memory.items()
    ]
    return {"samples_per_second": rates, "peak_bytes": memory, "note": "; ".join(notes)}


def cells(folder: Path, *, quick: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """What there is to measure, by name."""
    rounds, batches = (QUICK_ROUNDS, QUICK_BATCHES) if quick else (ROUNDS, BATCHES)
    rows, teacher, cpu = sst2(batches * BATCH), mini_lm(), torch.device("cpu")
    three, six = (Bench(teacher, layers, rows, BATCH, folder / str(layers), cpu) for layers in (3, 6))
    found = {"3 layers, fp32": partial(against_labels, three, FP32, rounds)}
    if not quick:
        found["3 layers, bf16"] = partial(against_labels, three, BF16, rounds)
        found["6 layers, fp32"] = partial(against_labels, six, FP32, rounds)
        found["6 layers, bf16"] = partial(against_labels, six, BF16, rounds)
    for peer, run in {"TextBrewer": three.by_textbrewer, "Trainer subclass": three.by_subclass}.items():
        for name, losses in COMPARED.items():
            if not quick or losses is HIDDEN:
                found[f"{peer}, {name}"] = partial(against_peer, peer, run, three, losses, rounds)
    if not quick:
        found["step by step"] = partial(step_by_step, three, rounds)
        found["memory"] = partial(with_memory_kept, three, rounds)
        found["GPU"] = partial(on_gpu, folder / "gpu", rounds)
    return found


def why_not(cell: str) -> str | None:
    """What is missing for a cell."""
    if cell.startswith("TextBrewer") and find_spec("textbrewer") is None:
        return "pip install --no-deps textbrewer==0.2.1 tensorboardX"
    return "no GPU here" if cell == "GPU" and not torch.cuda.is_available() else None


def targets(benchmark: Benchmark, cell: str) -> None:
    """Note a cell's targets."""
    figures = benchmark.cells.get(cell)
    rates = figures["samples_per_second"] if figures else {}
    missing = f"not run{f': {reason}' if (reason := why_not(cell)) else ''}"
    wanted: dict[str, tuple[str, float]] = {}
    if cell.split(", ")[0] in PEERS:
        name = cell.split(", ")[0]
        wanted = {arm: (name, least) for arm, least in zip(("fp32", "bf16"), PEERS[name], strict=True)}
    elif "layers" in cell:
        bounds = figures["bounds"] if figures else dict.fromkeys(ARMS, 1.0)
        wanted = {arm: (LABELS, least * bounds[arm]) for arm, (_, least) in ARMS.items()}
    for arm, (first, least) in wanted.items():
        found = ratios(rates[arm], rates[first]) if rates else None
        benchmark.target(
            found and statistics.median(found) >= least,
            f"{cell}: {arm}, times {first}",
            middle(found) if found else missing,
            f"{least:.3g}",
        )


def table(cells: Mapping[str, Mapping[str, Any]]) -> list[tuple[object, ...]]:
    """Every arm's rate, beside the first of its cell, and its bound."""
    rows: list[tuple[object, ...]] = []
    for name, cell in cells.items():
        rates, bounds = cell["samples_per_second"], cell.get("bounds", {})
        first = next(iter(rates.values()))
        rows += [
            (
                name,
                arm,
                middle(found, 1),
                middle(ratios(found, first)),
                f"{bounds[arm]:.3f}" if arm in bounds else "",
            )
            for arm, found in rates.items()
        ]
    return rows


def main() -> None:
    """Run what is missing, and print the table and the targets."""
    options = arguments(__doc__ or "")
    benchmark = Benchmark(
        "distill_throughput-quick" if options.quick else "distill_throughput", options.cells
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name, measure in cells(Path(scratch), quick=options.quick).items():
            if reason := why_not(name):
                print(f"--- {name}: left out, {reason}")
            else:
                benchmark.cell(name, measure)
            targets(benchmark, name)
    benchmark.finish(
        ("cell", "arm", "samples a second", "times the first", "arithmetic bound"), table(benchmark.cells)
    )


if __name__ == "__main__":
    main()
