"""The quickstart over 3 seeds: what is kept of the teacher's accuracy, at what speed, in what time.

Takes some 10 minutes a seed on 2 CPU cores; `--quick` some 5 minutes in all, on 5,000 sentences.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from harness import Benchmark, arguments, spread

from hf_kdnas import load_recipe, workflows

SEEDS = (0, 1, 2)
RETAINED, SPEEDUP, MINUTES = 0.96, 2.5, 15
# The small form learns from half the sentences, with half the search.
QUICK = [
    "data.limit=5000",
    "search.episodes=2",
    "search.finalists=1",
    "search.baselines=[every-second-layer]",
]
QUICK_RETAINED, QUICK_MINUTES = 0.94, 10


def run_seed(folder: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One whole quickstart; with a cache of its own, so that the teacher's time counts."""
    os.environ["KDNAS_CACHE"] = str(folder / "cache")
    recipe = load_recipe("quickstart", [f"seed={seed}", f"output_dir={folder / 'run'}", *overrides])
    start = time.monotonic()
    results = workflows.search(recipe)
    return {
        "seed": seed,
        "minutes": (time.monotonic() - start) / 60,
        **{name: results[name] for name in ("retained", "speedup", "seconds", "finalists", "baselines")},
        "teacher": results["teacher"],
        "student": results["student"],
    }


def main() -> None:
    """Run what is missing, and print the table and the targets."""
    options = arguments(__doc__ or "")
    overrides = QUICK if options.quick else []
    name = "quickstart-quick" if options.quick else "quickstart"
    benchmark = Benchmark(name, options.cells)
    cells = [
        benchmark.cell(
            f"seed-{seed}", lambda seed=seed: run_seed(options.runs / name / str(seed), seed, overrides)
        )
        for seed in (SEEDS[:1] if options.quick else SEEDS)
    ]
    done = [cell for cell in cells if cell]
    rows = [
        (
            cell["seed"],
            cell["student"]["architecture"],
            f"{cell['teacher']['quality']:.4f}",
            f"{cell['student']['quality']:.4f}",
            f"{cell['retained']:.1%}",
            f"{cell['speedup']:.2f}",
            f"{cell['student']['int8']['speedup']:.2f} at {cell['student']['int8']['quality']:.4f}",
            f"{cell['minutes']:.1f}",
        )
        for cell in done
    ]
    least, minutes = (QUICK_RETAINED, QUICK_MINUTES) if options.quick else (RETAINED, MINUTES)
    whole = len(done) == len(cells)
    retained = [cell["retained"] for cell in done]
    speedups = [cell["speedup"] for cell in done]
    slowest = max((cell["minutes"] for cell in done), default=float("nan"))
    if done:
        mean = sum(retained) / len(retained)
        benchmark.target(whole and mean >= least, "accuracy kept, mean", spread(retained), f"{least:.0%}")
        benchmark.target(
            whole and min(speedups) >= SPEEDUP, "speed-up, least", f"{min(speedups):.2f}", f"{SPEEDUP}"
        )
        benchmark.target(whole and slowest <= minutes, "minutes, most", f"{slowest:.1f}", f"{minutes}")
    header = ("seed", "student", "teacher", "student's", "kept", "times the speed", "INT8", "minutes")
    benchmark.finish(header, rows)


if __name__ == "__main__":
    main()
