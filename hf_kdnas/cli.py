"""The command `kdnas`.

Nothing heavy is imported before a command needs it: `kdnas --help` is there at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_kdnas.cli_hub import add_gallery, add_publish, gallery, publish
from hf_kdnas.cli_recipe import Parser, add_folder_choice, add_run, printed, read_recipe
from hf_kdnas.cli_superlm import add_superlm
from hf_kdnas.errors import USER_ERROR, InvalidInput

INTERRUPTED = 130  # 128 + SIGINT, as shells do


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows `kdnas`; by default the process's own.

    Returns:
        The exit code: 0, 2 for a mistake of the user's, 130 after an interrupt.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.takes_settings:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    options.overrides = rest
    try:
        options.run(options)
    except InvalidInput as error:
        print(f"kdnas: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("kdnas: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdnas",
        description="Search, distil and export small Transformers models.",
        allow_abbrev=False,
    )
    parser.set_defaults(takes_settings=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Parser:
        command = commands.add_parser(name, help=text, description=f"{text}.", allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    for workflow, text in (
        ("search", "Search a student for a teacher and a task, distil and export it"),
        ("distill", "Distil a given student from a teacher, and export it"),
        ("homotopic", "Narrow a student that begins as its teacher while it is distilled, and export it"),
    ):
        add_run(add(workflow, partial(_run_recipe, workflow), text))
    text = "Train weights that a whole space of students shares"
    add_superlm(commands.add_parser("superlm", help=text, description=f"{text}.", allow_abbrev=False))
    _add_recipes(add("recipes", _list_recipes, "List, show or copy the recipes that come with the package"))
    _add_latency(add("latency", _latency, "Measure the latency of any model folder on ONNX Runtime"))
    _add_evaluate(add("evaluate", _evaluate, "Fine-tune and score a task-agnostic model over GLUE"))
    report = add("report", _report, "Render the report and model card of a run again, from what is on disk")
    report.add_argument("run_dir", metavar="RUN", type=Path, help="folder of the run")
    add_publish(add("publish", publish, "Publish the student of a finished run on the Hub, in one commit"))
    add_gallery(
        add("gallery", gallery, "Put what finished runs found beside each other, as a page of Markdown")
    )
    add("env", _env, "Show versions, processor and ONNX Runtime providers")
    return parser


def _add_recipes(recipes: argparse.ArgumentParser) -> None:
    actions = recipes.add_subparsers(title="actions", metavar="ACTION")
    actions.add_parser("list", help="name them").set_defaults(run=_list_recipes)
    show = actions.add_parser("show", help="print one")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(run=_show_recipe)
    copy = actions.add_parser("copy", help="copy one, to change it")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("to", metavar="FILE", type=Path, nargs="?", help="default: NAME.yaml, here")
    copy.set_defaults(run=_copy_recipe)


def _add_latency(latency: argparse.ArgumentParser) -> None:
    latency.add_argument("model", metavar="MODEL_DIR", help="folder of a model, or its Hub id")
    latency.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a model on the Hub")
    latency.add_argument("--reference", metavar="MODEL_DIR", help="another, timed in turn with it")
    latency.add_argument("--reference-revision", metavar="NAME", help="the same of the reference")
    latency.add_argument(
        "--provider", default="CPUExecutionProvider", help="execution provider (%(default)s)"
    )
    latency.add_argument(
        "--precision", choices=("fp32", "int8"), default="fp32", help="of both models (%(default)s)"
    )
    for name, default, text in (
        ("threads", 1, "threads inside an operator"),
        ("batch_size", 1, "rows in a batch"),
        ("sequence_length", 128, "tokens in a row"),
        ("warmup", 5, "runs before the first that counts"),
        ("rounds", 30, "timed runs of each model"),
    ):
        flag = f"--{name.replace('_', '-')}"
        latency.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} (%(default)s)")


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    evaluate.usage = "%(prog)s MODEL [--tasks TASK ...] [--seeds N ...] [--data DIR|ID] [--published] ..."
    evaluate.add_argument(
        "model", metavar="MODEL", help="folder of a model, or its Hub id; any head gives way"
    )
    # What isn't given is left to EvaluationSection.
    for flag, kind, metavar, text in (
        ("--tasks", str, "TASK", "tasks of GLUE (all but wnli)"),
        ("--seeds", int, "N", "one run of each task with each (0 1 2)"),
        ("--learning-rates", float, "RATE", "to choose from (5e-5)"),
        ("--epochs", float, "N", "to choose from (3)"),
        ("--batch-sizes", int, "ROWS", "to choose from (32)"),
    ):
        evaluate.add_argument(
            flag, type=kind, nargs="*", default=argparse.SUPPRESS, metavar=metavar, help=text
        )
    for flag, kind, metavar, text in (
        ("--revision", str, "NAME", "branch, tag or commit of a model on the Hub"),
        ("--data", str, "DIR|ID", "holds each task ($KDNAS_DATA/glue, else the Hub's nyu-mll/glue)"),
        ("--held-out", float, "PART", "of the training rows, where there is a choice (0.1)"),
        ("--max-length", int, "TOKENS", "kept of a row (128)"),
        ("--precision", str, "NAME", "auto, fp32 or bf16 (auto)"),
    ):
        evaluate.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)
    evaluate.add_argument("--published", action="store_true", help="put published models into the table")
    evaluate.add_argument("--output-dir", metavar="DIR", help="folder of the results (runs/evaluate-NAME)")
    add_folder_choice(evaluate)


def _run_recipe(workflow: str, options: argparse.Namespace) -> None:
    recipe = read_recipe(options)
    if printed(recipe, options):
        return
    from hf_kdnas import workflows
    from hf_kdnas.processes import leave_processes

    run = getattr(workflows, workflow)
    try:
        results = run(recipe, resume=options.resume, overwrite=options.overwrite)
    finally:
        leave_processes()
    if results:  # ranks other than the first have none
        print(_summary(results, Path(recipe.output_dir)))


def _summary(results: Mapping[str, Any], folder: Path) -> str:
    teacher, student = results["teacher"], results["student"]
    metric = results["task"]["metric"]
    rows = [
        ("", metric, "latency", "parameters"),
        *(
            (
                f"{role} {model['architecture']}",
                f"{model['quality']:.4f}",
                f"{model['latency_ms']:.2f} ms",
                f"{model['parameters'] / 1e6:.1f} M",
            )
            for role, model in (("teacher", teacher), ("student", student))
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    retained = results["retained"]
    kept = (
        f"keeps {retained:.1%} of the {metric}" if retained is not None else "nothing of its teacher to keep"
    )
    lines.append(f"{results['speedup']:.2f} times as fast, {kept}")
    if not results["constraints_met"]:
        lines.append("No finalist met all constraints of the recipe; this one came nearest.")
    lines += [f"student  {folder / 'student'}", f"report   {folder / 'report.html'}"]
    return "\n".join(lines)


def _list_recipes(options: argparse.Namespace) -> None:
    from hf_kdnas.resources import packaged_recipe, recipe_names

    for name in recipe_names():
        first = packaged_recipe(name).read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:20}  {first.lstrip('# ')}")


def _packaged(name: str) -> Path:
    from hf_kdnas.resources import packaged_recipe, recipe_names

    if name not in recipe_names():
        from hf_kdnas.recipe_files import nearest

        raise InvalidInput(
            "recipe", name, f"recipes are {', '.join(recipe_names())}", nearest(name, recipe_names())
        )
    return packaged_recipe(name)


def _show_recipe(options: argparse.Namespace) -> None:
    print(_packaged(options.name).read_text(encoding="utf-8"), end="")


def _copy_recipe(options: argparse.Namespace) -> None:
    source = _packaged(options.name)
    target: Path = options.to or Path(source.name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise InvalidInput("FILE", str(target), "it exists", "Choose another name.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise InvalidInput(
            "FILE", str(target), f"it can't be written ({error.strerror})", "Choose another place."
        ) from None
    print(target)


def _latency(options: argparse.Namespace) -> None:
    from hf_kdnas.recipe import LatencySection
    from hf_kdnas.recipe_checks import check_section

    names = ("provider", "precision", "threads", "batch_size", "sequence_length", "warmup", "rounds")
    section = LatencySection(**{name: getattr(options, name) for name in names})
    check_section(section)
    from hf_kdnas import workflows

    models = {name: getattr(options, name) for name in ("reference", "revision", "reference_revision")}
    print(workflows.latency(options.model, **models, section=section))


def _evaluate(options: argparse.Namespace) -> None:
    from hf_kdnas.recipe import EvaluationSection

    names = {each.name for each in dataclasses.fields(EvaluationSection)}
    section = EvaluationSection(**{name: value for name, value in vars(options).items() if name in names})
    from hf_kdnas import workflows
    from hf_kdnas.evaluation.table import render_table
    from hf_kdnas.processes import leave_processes

    try:
        results = workflows.evaluate(
            options.model,
            section,
            output_dir=options.output_dir,
            published=options.published,
            resume=options.resume,
            overwrite=options.overwrite,
        )
    finally:
        leave_processes()
    if results:
        print(render_table(results, published=options.published))


def _report(options: argparse.Namespace) -> None:
    from hf_kdnas import workflows

    print(workflows.report(options.run_dir))


def _env(options: argparse.Namespace) -> None:
    from hf_kdnas.environment import environment

    for name, value in environment().items():
        print(f"{name:16}  {value}")
