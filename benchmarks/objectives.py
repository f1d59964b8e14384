"""What each signal is worth to one student: every second layer of the MiniLM teacher, 3 seeds each.

All signals of the recipe `sst2_signals` on 10,000 sentences of GLUE SST-2; then, on MRPC and RTE, no
distillation and the best signal of each kind, chosen by SST-2's selection split. Scores are those on GLUE's
validation splits. Takes some 75 minutes on 2 CPU cores; `--quick` some 10 minutes: 5,000 sentences of SST-2,
one seed.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from harness import Benchmark, arguments, spread

from hf_kdnas import load_recipe, workflows

QUICK = ["data.limit=5000", "compare.seeds=[0]"]
PAIRS = {"mrpc": ["sentence1", "sentence2"], "rte": ["sentence1", "sentence2"]}
# The pairs are a quarter of SST-2's part: more epochs, for all arms alike.
PAIR_SETTINGS = [
    "data.limit=null",
    "data.group_contained=false",
    "data.labels=null",
    "teacher.fine_tune.epochs=3",
]
PAIR_EPOCHS = 6
# What a signal is said to be worth over labels alone, in points of accuracy on SST-2 (methods of the papers).
GAIN = 1.0
NO_DISTILLATION = "no distillation"


def run(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The student from each signal, and what its teacher scores."""
    results = workflows.distill(load_recipe("sst2_signals", [f"output_dir={folder}", *overrides]))
    return {name: results[name] for name in ("teacher", "comparison", "seconds")}


def pair_overrides(task: str, objectives: dict[str, Any]) -> list[str]:
    """The recipe for another task, with these sets of objectives alone."""
    return [
        f"data.path=data:glue/{task}",
        f"data.text={json.dumps(PAIRS[task])}",
        *PAIR_SETTINGS,
        f"distillation.training.epochs={PAIR_EPOCHS}",
        f"compare={json.dumps({'objectives': objectives})}",
    ]


def kind(objectives: dict[str, Any]) -> str:
    """What a set of objectives learns from, labels aside."""
    signals = [name for name in objectives if name != "task"]
    return signals[0] if len(signals) == 1 else "combination" if signals else NO_DISTILLATION


def best_of_each_kind(comparison: list[dict[str, Any]]) -> dict[str, Any]:
    """Objectives by name: of each kind those that the selection split prefers."""
    best: dict[str, dict[str, Any]] = {}
    for arm in comparison:
        known = best.get(kind(arm["objectives"]))
        if known is None or _selection(arm) > _selection(known):
            best[kind(arm["objectives"])] = arm
    return {arm["name"]: arm["objectives"] for arm in best.values()}


def _selection(arm: dict[str, Any]) -> float:
    return statistics.fmean(arm["selection_qualities"])


def main() -> None:
    """Run what is missing, and print the table and the target."""
    options = arguments(__doc__ or "")
    name = "objectives-quick" if options.quick else "objectives"
    benchmark = Benchmark(name, options.cells)
    folder = options.runs / name
    cells = {"sst2": benchmark.cell("sst2", lambda: run(folder / "sst2", QUICK if options.quick else []))}
    sst2 = cells["sst2"]
    chosen = best_of_each_kind(sst2["comparison"]) if sst2 else {}
    for task in PAIRS if chosen and not options.quick else ():
        cells[task] = benchmark.cell(task, lambda task=task: run(folder / task, pair_overrides(task, chosen)))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task, cell in cells.items():
        for arm in cell["comparison"] if cell else ():
            found.setdefault(arm["name"], {})[task] = arm
    if sst2:
        best = max(sst2["comparison"], key=_selection)
        plain = found[NO_DISTILLATION]["sst2"]
        gain = 100 * (statistics.fmean(best["qualities"]) - statistics.fmean(plain["qualities"]))
        benchmark.target(
            gain >= GAIN,
            f"{best['name']} (best by selection) over {NO_DISTILLATION}, SST-2",
            f"{gain:+.1f} points",
            f"{GAIN:+}",
        )
    benchmark.finish(
        ("signals", *cells),
        [
            (
                "the teacher",
                *(f"{100 * cell['teacher']['quality']:.1f}" if cell else "" for cell in cells.values()),
            ),
            *(
                (arm, *(spread(tasks[task]["qualities"]) if task in tasks else "" for task in cells))
                for arm, tasks in found.items()
            ),
        ],
    )


if __name__ == "__main__":
    main()
