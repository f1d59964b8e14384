"""What the command line calls: each workflow strings stages together over a run folder."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_kdnas.comparison import compare
from hf_kdnas.evaluation.runs import Evaluation
from hf_kdnas.evaluation.suite import load_suite
from hf_kdnas.evaluation.table import model_name, render_table
from hf_kdnas.homotopic.plan import plan_homotopic, plan_homotopic_search
from hf_kdnas.hub.card import render_card
from hf_kdnas.hub.gallery import find_results, gallery_text
from hf_kdnas.hub.publish import publish_run
from hf_kdnas.hub.push import check_push, push_run
from hf_kdnas.plan import plan_distillation, plan_search
from hf_kdnas.processes import join_processes, on_first
from hf_kdnas.pruning import OneTarget
from hf_kdnas.recipe import recipe_fingerprint, recipe_to_yaml
from hf_kdnas.recipe_files import fingerprint, to_yaml
from hf_kdnas.report import render_report
from hf_kdnas.results import Findings
from hf_kdnas.run import RunFolder, write_json, write_text
from hf_kdnas.search.reward import choose_winner
from hf_kdnas.search.students import Student
from hf_kdnas.search_stages import PruningSearchStages, SearchStages
from hf_kdnas.stages import Stages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import PartialState

    from hf_kdnas.recipe import EvaluationSection, LatencySection, Recipe


def search(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Search, distil, export and report: everything that a recipe asks for.

    The same call goes on where an earlier one stopped, and does nothing twice.

    Args:
        recipe: The recipe.
        resume: Go on in an output folder that another recipe began.
        overwrite: Begin again in the output folder.

    Returns:
        What `results.json` holds; on other ranks than the first, an empty dict.

    Raises:
        InvalidInput: If the recipe can't be carried out.
    """
    processes = join_processes()
    narrowing = recipe.search.finalise == "homotopic"
    plan = plan_homotopic_search(recipe) if narrowing else plan_search(recipe)
    kind = PruningSearchStages if narrowing else SearchStages
    stages = kind(plan, RunFolder(Path(recipe.output_dir)), processes)
    _open(stages, resume, overwrite)
    return _ended(recipe, processes, stages.run())


def distill(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Distil the recipe's `student` from its teacher, without a search; export and report.

    Where the recipe has `compare`, the same student is also trained with each set of objectives there.

    Args:
        recipe: The recipe.
        resume: Go on in an output folder that another recipe began.
        overwrite: Begin again in the output folder.

    Returns:
        What `results.json` holds; on other ranks than the first, an empty dict.

    Raises:
        InvalidInput: If the recipe can't be carried out.
    """
    processes = join_processes()
    plan = plan_distillation(recipe)
    stages = Stages(plan, RunFolder(Path(recipe.output_dir)), processes)
    _open(stages, resume, overwrite)
    stages.prepare()
    [architecture] = plan.space
    with stages.stage("distillation", f"student {recipe.student}"):
        [student] = stages.distil({recipe.student: architecture})
    comparison = []
    if recipe.compare is not None:
        with stages.stage("comparison", "the same student from other signals"):
            comparison = compare(stages, recipe.compare, architecture)
    return _finished(stages, student, comparison=comparison)


def homotopic(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Narrow a student that begins as its teacher while it is distilled (HomoDistil); export and report.

    Args:
        recipe: The recipe, with a section `homotopic`.
        resume: Go on in an output folder that another recipe began.
        overwrite: Begin again in the output folder.

    Returns:
        What `results.json` holds; on other ranks than the first, an empty dict.

    Raises:
        InvalidInput: If the recipe can't be carried out.
    """
    processes = join_processes()
    plan = plan_homotopic(recipe)
    stages = OneTarget(plan, RunFolder(Path(recipe.output_dir)), processes)
    _open(stages, resume, overwrite)
    stages.tell_target()
    stages.prepare()
    with stages.stage("distillation", f"student {stages.target}, from a copy of its teacher"):
        [student] = stages.distil({stages.target.key: stages.target})
    return _finished(stages, student)


def _finished(stages: Stages, student: Student, **findings: Any) -> dict[str, Any]:
    """Export and report a student that was given no rivals; empty on other ranks than the first."""
    results: dict[str, Any] = {}
    if stages.processes.is_main_process:
        _, met = choose_winner([student], stages.recipe.search.constraints)
        space = stages.plan.space
        results = stages.finish(Findings(space, finalists=[student], winner=student, met=met, **findings))
    return _ended(stages.recipe, stages.processes, results)


def _ended(recipe: Recipe, processes: PartialState, results: dict[str, Any]) -> dict[str, Any]:
    """Let the other ranks go, and publish what the recipe wants published."""
    processes.wait_for_everyone()
    if processes.is_main_process:
        push_run(recipe)
    return results


def latency(
    model: str,
    *,
    reference: str | None,
    section: LatencySection,
    revision: str | None = None,
    reference_revision: str | None = None,
) -> str:
    """Measure a model folder on ONNX Runtime, and tell the result.

    Args:
        model: Folder or Hub id of a model, with or without a head; its ONNX file is used if it has one.
        reference: Another one, timed in turn with it.
        section: Where and how to measure.
        revision: Of a model on the Hub.
        reference_revision: The same of the reference.

    Raises:
        InvalidInput: If a model can't be found or exported.
    """
    from hf_kdnas.latency.folder import onnx_file
    from hf_kdnas.latency.measure import measure
    from hf_kdnas.latency.target import LatencyTarget

    target = LatencyTarget(**vars(section))
    with tempfile.TemporaryDirectory() as scratch:
        files = [
            onnx_file(each, Path(scratch) / name, precision=target.precision, revision=commit)
            for name, each, commit in (
                ("model", model, revision),
                ("reference", reference, reference_revision),
            )
            if each is not None
        ]
        report = measure(files[0], target, reference=files[1] if reference else None)
    return str(report)


def evaluate(
    model: str,
    section: EvaluationSection,
    *,
    output_dir: str | None = None,
    published: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fine-tune and score a model over tasks of GLUE; write `results.json` and `table.md`.

    The same call goes on where an earlier one stopped.

    Args:
        model: Folder or Hub id of a model, with or without a head.
        section: Tasks, seeds and grid.
        output_dir: Folder of the results; None means runs/evaluate-NAME.
        published: Put published models into the table.
        resume: Go on in an output folder that other settings began.
        overwrite: Begin again in the output folder.

    Returns:
        What `results.json` holds; on other ranks than the first, an empty dict.

    Raises:
        InvalidInput: If the model or a task can't be used.
    """
    processes = join_processes()
    suite = load_suite(model, section)
    folder = RunFolder(Path(output_dir or f"runs/evaluate-{model_name(model)}"))
    settings = {"model": model, **asdict(section)}
    identity = fingerprint({"workflow": "evaluate", **settings}, leave_out=())
    on_first(
        lambda: folder.open(
            to_yaml(settings), identity, name="evaluation.yaml", resume=resume, overwrite=overwrite
        ),
        processes,
    )
    results = Evaluation(suite, folder, processes).run()
    if processes.is_main_process:
        write_json(folder / "results.json", results)
        write_text(folder / "table.md", render_table(results, published=published) + "\n")
    processes.wait_for_everyone()
    return results if processes.is_main_process else {}


def report(run_dir: Path) -> Path:
    """Render a run's report and model card again, from its results.json alone."""
    render_card(run_dir)
    return render_report(run_dir)


publish = publish_run


def gallery(folders: Sequence[Path]) -> str:
    """What runs found, beside each other: a page of Markdown.

    Args:
        folders: Folders of runs, or folders that hold such.

    Raises:
        InvalidInput: If a folder holds no finished run.
    """
    return gallery_text(find_results(folders))


def _open(stages: Stages, resume: bool, overwrite: bool) -> None:
    """Open the run folder, after a look at everything else that could refuse the run."""
    recipe, folder = stages.recipe, stages.folder

    def on_disk() -> None:
        identity = recipe_fingerprint(recipe, stages.plan.workflow)
        folder.check(identity, resume=resume, overwrite=overwrite)
        check_push(recipe)
        stages.check(overwrite)
        folder.open(recipe_to_yaml(recipe), identity, resume=resume, overwrite=overwrite)

    on_first(on_disk, stages.processes)
