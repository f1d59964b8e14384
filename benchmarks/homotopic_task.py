"""Whether narrowing a student while it is distilled beats a narrow student from the first step on: on a task.

The MiniLM teacher, fine-tuned on 10,000 sentences of SST-2. Against every second layer: students of the
teacher's depth of the widest shape that is no slower, measured; narrowed, narrowed by labels alone,
projected at once. 3 seeds. Takes some 50 minutes on 2 CPU cores; `--quick` some 4 minutes: 2,000 sentences,
one seed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from harness import Benchmark, arguments, results_of, spread

from hf_kdnas import Architecture, load_recipe, workflows
from hf_kdnas.plan import plan_distillation
from hf_kdnas.processes import join_processes
from hf_kdnas.run import RunFolder
from hf_kdnas.stages import Stages

SEEDS, SENTENCES, QUICK_SENTENCES = (0, 1, 2), 10_000, 2_000
EVERY_SECOND, NARROWED, PROJECTED = "every second layer", "narrowed", "projected at once"
LABELS = "narrowed, labels alone"


def measured(folder: Path, arm: str, settings: list[str]) -> dict[str, Any]:
    """One run of an arm."""
    if arm == EVERY_SECOND:
        own, workflow = ["student=every-second-layer"], workflows.distill
    else:
        shape = as_fast(folder.parent / "shapes", settings).key
        # Hidden states are compared relative to their variance, as they are where a student is projected.
        own, workflow = [f"homotopic.target={shape}", "homotopic.maps=kept"], workflows.homotopic
        if arm == PROJECTED:
            own, workflow = [f"student={shape}"], workflows.distill
        elif arm == LABELS:
            own.append("distillation.objectives={task: {}}")
    workflow(load_recipe("sst2_signals", [*settings, *own, f"output_dir={folder}"]), resume=True)
    results = results_of(folder)
    return {
        "quality": results["student"]["quality"],
        "teacher": results["teacher"]["quality"],
        "architecture": results["student"]["architecture"],
        "speedup": results["speedup"],
        "seconds": results["seconds"]["distillation"],
    }


def as_fast(folder: Path, settings: list[str]) -> Architecture:
    """The widest shape of the teacher's depth that is no slower than every second layer, measured."""
    plan = plan_distillation(load_recipe("sst2_signals", [*settings, f"output_dir={folder}"]))
    stages = Stages(plan, RunFolder(folder), join_processes())
    [shallow] = plan.space
    teacher, most = plan.teacher, stages.latencies(shallow).ratio
    heads = teacher.num_attention_heads
    for size in range(teacher.attention_head_size, 0, -1):
        neurons = teacher.intermediate_size * size // teacher.attention_head_size
        shape = Architecture(teacher.num_hidden_layers, heads * size, heads, neurons, teacher.hidden_act)
        if stages.latencies(shape).ratio <= most:
            return shape
    raise AssertionError("no shape of the teacher's depth is as fast as every second layer")


def main() -> None:
    """Run what is missing, and print the table and the target."""
    options = arguments(__doc__ or "")
    name = f"homotopic_task{'-quick' if options.quick else ''}"
    benchmark = Benchmark(name, options.cells)
    seeds = SEEDS[:1] if options.quick else SEEDS
    cells: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        limit = QUICK_SENTENCES if options.quick else SENTENCES
        settings = [f"seed={seed}", "compare=null", f"data.limit={limit}"]
        for arm in (EVERY_SECOND, NARROWED, LABELS, PROJECTED):
            folder = options.runs / name / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
            if cell := benchmark.cell(f"{arm}/seed-{seed}", partial(measured, folder, arm, settings)):
                cells.setdefault(arm, []).append(cell)
    for arm in (PROJECTED, EVERY_SECOND, LABELS):
        if all(len(cells.get(each, [])) == len(seeds) for each in (NARROWED, arm)):
            ours, theirs = (fmean(cell["quality"] for cell in cells[each]) for each in (NARROWED, arm))
            gain = 100 * (ours - theirs)
            benchmark.target(gain > 0, f"accuracy, narrowed over {arm}", f"{gain:+.1f} points", "above 0")
    benchmark.finish(
        ("student", "shape", "accuracy", "teacher's", "times the speed", "seconds of distillation"),
        [
            (
                arm,
                ", ".join(sorted({cell["architecture"] for cell in found})),
                spread([cell["quality"] for cell in found]),
                spread([cell["teacher"] for cell in found]),
                spread([cell["speedup"] for cell in found], 2, 1.0),
                spread([cell["seconds"] for cell in found], 0, 1.0),
            )
            for arm, found in cells.items()
        ],
    )


if __name__ == "__main__":
    main()
