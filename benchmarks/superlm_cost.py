"""What a SuperLM costs: a sandwich step beside its members' own steps, its memory, and ranking.

Spaces are the three that are cut from the MiniLM teacher, batches 16 windows of 128 random tokens, whose
values change no rate. Arms take turns, round by round; a ratio is one within a round.

- step: one of SuperLMTrainer (largest, smallest, 2 at random) over the sum of the same members' own steps:
  models of their own, the same batch, loss, clipping and AdamW. The teacher's forward is once in both.
- memory: the most that a step allocates, against the largest member's own step and one more copy of the
  gradients; the teacher's forward is in both.
- ranking: members by HeldOut.mean_losses, with the space's share of building the teacher's signals, against
  running each extracted student and the teacher afresh. The arithmetic bound is (teacher + student) / student
  in multiply-adds of their layers; beside it one that counts the products of the relations, too, which both
  arms have to do, and what would be gained if a member took no longer than its student's own forward
  (`forwards`), because a narrow model does fewer multiply-adds a second than a wide one.

Takes some 20 minutes on 2 CPU cores; `--quick` some 4 minutes: the middle space, fewer rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Benchmark, alternately, arguments, middle, ratios
from superlm_steps import BATCH, LENGTH, STEPS, WARM_UP, Bench, Clock, Memory

from hf_kdnas import Architecture
from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.precision import autocast

SPACES, QUICK_SPACES = ("space-1", "space-2", "space-3"), ("space-2",)
ROUNDS, QUICK_ROUNDS = 5, 3
# Members that are ranked, spread over the space by what they cost, and windows that they are ranked on.
RANKED, WINDOWS = 16, 64

MOST_TIME, LEAST_OF_BOUND = 1.15, 0.9


def steps_cell(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds of a sandwich step, of its members' own steps, and of the teacher's forward."""
    bench = Bench(name, folder)
    timed = range(WARM_UP, WARM_UP + STEPS)
    signals = {step: bench.read(bench.batch(bench.windows.of_step(step))) for step in timed}

    def together(number: int) -> float:
        clock = Clock(bench.device)
        bench.train_together(clock)
        return 1000 * clock.seconds(STEPS) / STEPS

    def apart(number: int) -> float:
        """Each member is timed on the batches of the steps that it is in."""
        seconds = 0.0
        for member in sorted({each for step in timed for each in bench.members[step]}):
            own = [step for step in timed if member in bench.members[step]]
            given = iter([signals[step] for step in (own[0], *own)])
            clock = Clock(bench.device, warm_up=1)
            bench.train_alone(member, (own[0], *own), lambda _, given=given: next(given), clock)
            seconds += clock.seconds(len(own))
        return 1000 * seconds / STEPS

    def teacher(number: int) -> float:
        clock = Clock(bench.device, warm_up=1)
        for step in (timed[0], *timed):
            bench.read(bench.batch(bench.windows.of_step(step)))
            clock(step)
        return 1000 * clock.seconds(STEPS) / STEPS

    arms = {"together": together, "apart": apart, "teacher": teacher}
    return {"milliseconds": alternately(arms, rounds)}


def memory_cell(name: str, folder: Path) -> dict[str, Any]:
    """The most bytes of a step of SuperLMTrainer, of the largest member's own step, and of the gradients."""
    bench = Bench(name, folder)
    together, largest = Memory(bench.device), Memory(bench.device)
    bench.train_together(together)
    bench.train_alone(bench.members[0][0], range(WARM_UP + STEPS), bench.read, largest)
    gradients = sum(each.numel() * each.element_size() for each in bench.superlm.model.parameters())
    found = {"together": together.highest, "largest": largest.highest, "gradients": gradients}
    return {"bytes": found}


def ranking_cell(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Windows a second over members that are spread over the space."""
    bench = Bench(name, folder)
    members = spread(bench.space, RANKED)
    share = len(members) / len(bench.space)
    students = {member: bench.superlm.extract(member).eval() for member in members}

    def ranked(number: int) -> float:
        start = time.perf_counter()
        held_out = bench.held_out(WINDOWS)
        built = time.perf_counter()
        held_out.mean_losses(bench.superlm, members)
        seconds = time.perf_counter() - built + share * (built - start)
        return len(members) * WINDOWS / seconds

    @torch.no_grad()
    def each_alone(number: int, *, whole: bool) -> float:
        start = time.perf_counter()
        for member, student in students.items():
            criterion = bench.losses[member]
            capture, total = Capture(student, criterion.student_signals), 0.0
            for first in range(0, WINDOWS, BATCH):
                batch = bench.batch(bench.windows.all[first : first + BATCH])
                with autocast(bench.device, bench.section.precision):
                    found = forward_signals(student, capture, batch)
                if whole:
                    wanted = bench.read(batch, whole=True)
                    total += float(criterion(found, wanted, batch, criterion.counts(batch))[0])
            if bench.device.type == "cuda":
                torch.cuda.synchronize()
        return len(members) * WINDOWS / (time.perf_counter() - start)

    arms = {
        "ranked": ranked,
        "afresh": partial(each_alone, whole=True),
        "forwards": partial(each_alone, whole=False),
    }
    rates = alternately(arms, rounds)
    return {"windows_per_second": rates, "bounds": bounds(bench.plan.teacher, members)}


def spread(space: Iterable[Architecture], count: int) -> list[Architecture]:
    """Members of small to large cost, whose mean cost is about the space's: the middle one of equal parts."""
    members = sorted(space, key=lambda member: (member.flops(LENGTH), member))
    return [members[(2 * part + 1) * len(members) // (2 * count)] for part in range(count)]


def bounds(teacher: Architecture, members: Sequence[Architecture]) -> list[float]:
    """(teacher + student) / student in multiply-adds of layers, and with the products of the relations."""
    students = sum(member.flops(LENGTH) for member in members)
    both = students + len(members) * teacher.flops(LENGTH)
    # Queries, keys and values, of student and teacher.
    widths = sum(member.attention_size + teacher.attention_size for member in members)
    products = 3 * LENGTH * LENGTH * widths
    return [both / students, (both + products) / (students + products)]


def targets(benchmark: Benchmark, name: str) -> None:
    """Note a space's targets."""
    cells = benchmark.cells
    step, memory, ranking = (cells.get(f"{what}, {name}") for what in ("step", "memory", "ranking"))
    found = step_ratios(step) if step else None
    benchmark.target(
        found and statistics.median(found) <= MOST_TIME,
        f"step of {name} over its members' own",
        middle(found) if found else "not run",
        f"at most {MOST_TIME}",
    )
    size = memory["bytes"] if memory else None
    benchmark.target(
        size and size["together"] <= size["largest"] + size["gradients"],
        f"memory of a step of {name}",
        f"{size['together'] / 1e6:.0f} MB" if size else "not run",
        f"{size['largest'] / 1e6:.0f} + {size['gradients'] / 1e6:.0f} MB" if size else "",
    )
    rates = ranking["windows_per_second"] if ranking else None
    gain = ratios(rates["ranked"], rates["afresh"]) if rates else None
    bound = ranking["bounds"][0] if ranking else float("nan")
    benchmark.target(
        gain and statistics.median(gain) >= LEAST_OF_BOUND * bound,
        f"ranking {name}, times running student and teacher afresh",
        middle(gain) if gain else "not run",
        f"{LEAST_OF_BOUND * bound:.3g}, {LEAST_OF_BOUND:g} of {bound:.3g}",
    )


def step_ratios(cell: Mapping[str, Any]) -> list[float]:
    """A sandwich step over its members' own, the teacher's forward in both."""
    found = cell["milliseconds"]
    # Of all rounds: one disturbed forward of the teacher is as long as many steps of the members.
    teacher = statistics.median(found["teacher"])
    return ratios(found["together"], [apart + teacher for apart in found["apart"]])


def table(name: str, cell: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """A cell's arms: what was measured, and beside what."""
    if "milliseconds" in cell:
        shares = {"together": middle(step_ratios(cell)) + " of apart and teacher"}
        return [
            (name, arm, f"{middle(found, 0)} ms", shares.get(arm, ""))
            for arm, found in cell["milliseconds"].items()
        ]
    if "bytes" in cell:
        return [(name, arm, f"{size / 1e6:.0f} MB", "") for arm, size in cell["bytes"].items()]
    rates, (plain, whole) = cell["windows_per_second"], cell["bounds"]
    afresh = rates["afresh"]
    gains = {
        arm: f"{middle(ratios(found, afresh))} times afresh"
        for arm, found in rates.items()
        if arm != "afresh"
    }
    gains["ranked"] += f"; bound {plain:.2f}, with relations {whole:.2f}"
    return [(name, arm, f"{middle(found, 0)} windows/s", gains.get(arm, "")) for arm, found in rates.items()]


def main() -> None:
    """Run what is missing, and print the table and the targets."""
    options = arguments(__doc__ or "")
    benchmark = Benchmark("superlm_cost-quick" if options.quick else "superlm_cost", options.cells)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    spaces = QUICK_SPACES if options.quick else SPACES
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in spaces:
            benchmark.cell(f"step, {name}", partial(steps_cell, name, folder, rounds))
            benchmark.cell(f"memory, {name}", partial(memory_cell, name, folder))
            benchmark.cell(f"ranking, {name}", partial(ranking_cell, name, folder, rounds))
            targets(benchmark, name)
    benchmark.finish(
        ("cell", "arm", "measured", "beside"),
        [row for name, cell in benchmark.cells.items() for row in table(name, cell)],
    )


if __name__ == "__main__":
    main()
