"""`kdnas superlm`: train SuperLMs, rank their members, pull students."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hf_kdnas.cli_recipe import Parser, add_recipe, add_run, printed, read_recipe
from hf_kdnas.errors import InvalidInput

if TYPE_CHECKING:
    from hf_kdnas.superlm.ranking import Member
    from hf_kdnas.superlm_proxy import Proxy


def add_superlm(superlm: argparse.ArgumentParser) -> None:
    """The actions of `kdnas superlm`."""
    actions = superlm.add_subparsers(title="actions", metavar="ACTION", required=True, parser_class=Parser)
    train = actions.add_parser("train", help="train a SuperLM for each space of a recipe", allow_abbrev=False)
    train.set_defaults(run=_train)
    add_run(train)
    rank = actions.add_parser(
        "rank", help="rank all members by their loss on held-out text", allow_abbrev=False
    )
    rank.set_defaults(run=_rank)
    add_recipe(rank, "that of the training")
    rank.add_argument(
        "--by",
        choices=("parameters", "flops", "latency"),
        default="parameters",
        help="cost that the members shown are the best for (%(default)s); latency measures them",
    )
    extract = actions.add_parser(
        "extract", help="write the best member within a budget as a student's folder", allow_abbrev=False
    )
    extract.set_defaults(run=_extract)
    add_recipe(extract, "that of the training")
    for flag, kind, metavar, text in (
        ("--parameters", int, "N", "most parameters"),
        ("--flops", int, "N", "most multiply-adds of its layers for one window of text"),
        ("--latency-ms", float, "MS", "highest median latency, measured as the recipe says"),
        ("--speedup", float, "TIMES", "least speed-up over the teacher, measured likewise"),
        ("--architecture", str, "KEY", "take this member"),
        ("--output", Path, "DIR", "the student's folder (students/KEY in the run folder)"),
    ):
        extract.add_argument(flag, type=kind, metavar=metavar, help=text)
    _add_proxy(extract)


def _add_proxy(extract: argparse.ArgumentParser) -> None:
    proxy = extract.add_argument_group("choosing by a task")
    proxy.add_argument(
        "--proxy",
        metavar="TASK",
        help="fine-tune the best members on this task of GLUE, and take the one of the highest score on rows "
        "held out of its training split",
    )
    # What isn't given is left to Proxy.
    for flag, kind, metavar, text in (
        ("--best", int, "K", "this many members, those of the least loss (5)"),
        ("--proxy-data", str, "DIR|ID", "holds each task ($KDNAS_DATA/glue, else the Hub's nyu-mll/glue)"),
        ("--proxy-epochs", float, "N", "passes over the rows (3)"),
        ("--proxy-learning-rate", float, "RATE", "the highest (5e-5)"),
    ):
        proxy.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)


def _train(options: argparse.Namespace) -> None:
    recipe = read_recipe(options)
    if printed(recipe, options):
        return
    from hf_kdnas import superlm_workflows
    from hf_kdnas.processes import leave_processes, talks

    try:
        histories = superlm_workflows.train_superlms(
            recipe, resume=options.resume, overwrite=options.overwrite
        )
    finally:
        leave_processes()
    if not talks():
        return
    for name, history in histories.items():
        losses = ", ".join(f"{size} {loss:.4g}" for size, loss in history[-1]["held_out"].items())
        print(f"{name}: held-out loss {losses}")


def _rank(options: argparse.Namespace) -> None:
    recipe = read_recipe(options)
    from hf_kdnas import superlm_workflows
    from hf_kdnas.processes import leave_processes, talks
    from hf_kdnas.superlm.ranking import best_by

    try:
        members = superlm_workflows.rank_superlms(recipe)
        front: dict[Member, dict[str, float]]
        if options.by == "latency":
            front = superlm_workflows.front_by_latency(recipe)
        else:
            front = {member: {} for member in best_by(options.by, members)}
    finally:
        leave_processes()
    if not talks():
        return
    print(f"{len(members)} members; those that no cheaper one beats:")
    for member, latency in front.items():
        costs = [f"{member.parameters / 1e6:.1f} M", f"{member.flops / 1e9:.2f} GFLOPs"]
        if latency:
            costs += [f"{latency['latency_ms']:.2f} ms", f"{latency['speedup']:.2f}x"]
        shown = "".join(f"{cost:>13}" for cost in costs)
        print(f"  {member.architecture.key:30}{shown}  loss {member.loss:.4g}  {member.space}")


def _extract(options: argparse.Namespace) -> None:
    recipe = read_recipe(options)
    from hf_kdnas import superlm_workflows
    from hf_kdnas.processes import leave_processes

    budget = superlm_workflows.Budget(options.parameters, options.flops, options.latency_ms, options.speedup)
    try:
        student = superlm_workflows.extract_student(
            recipe, options.output, budget, options.architecture, _proxy(options)
        )
    finally:
        leave_processes()
    for name, value in student.items():
        text = " ".join(map(str, value.values())) if isinstance(value, dict) else value
        print(f"{name:12}  {text}")


def _proxy(options: argparse.Namespace) -> Proxy | None:
    given = {name: value for name, value in vars(options).items() if name in ("best", *_PROXY)}
    if options.proxy is None:
        if given:
            name = next(iter(given))
            raise InvalidInput(name, given[name], "it is about --proxy", "Give --proxy TASK as well.")
        return None
    from hf_kdnas.superlm_proxy import Proxy

    return Proxy(options.proxy, **{_PROXY.get(name, name): value for name, value in given.items()})


# Options, and the settings of Proxy that they are.
_PROXY = {"proxy_data": "data", "proxy_epochs": "epochs", "proxy_learning_rate": "learning_rate"}
