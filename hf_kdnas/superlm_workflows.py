"""What `kdnas superlm` calls: train SuperLMs, rank their members, pull students."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_kdnas.environment import environment
from hf_kdnas.errors import InvalidInput
from hf_kdnas.hub.extracted import EXTRACTED, render_extracted_card
from hf_kdnas.hub.merge import ASIDE, CARD
from hf_kdnas.latency.export import get_exporter
from hf_kdnas.latency.store import LatencyStore
from hf_kdnas.latency.target import LatencyTarget
from hf_kdnas.pareto import pareto_front
from hf_kdnas.processes import join_processes, on_first
from hf_kdnas.recipe import recipe_fingerprint, recipe_to_yaml
from hf_kdnas.resources import cache_dir
from hf_kdnas.results import full_path, teacher_source
from hf_kdnas.run import RunFolder, require_writable
from hf_kdnas.search.latencies import ShapeLatencies
from hf_kdnas.superlm.plan import plan_superlm
from hf_kdnas.superlm.ranking import best_by, within
from hf_kdnas.superlm.run import SETTINGS, SuperLMRun
from hf_kdnas.superlm_proxy import ProxyTrial
from hf_kdnas.tasks.base import source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import PartialState

    from hf_kdnas.latency.measure import LatencyReport
    from hf_kdnas.recipe import Recipe
    from hf_kdnas.superlm.plan import SuperLMPlan
    from hf_kdnas.superlm.ranking import Member
    from hf_kdnas.superlm_proxy import Proxy


@dataclass(frozen=True)
class Budget:
    """What a student may cost at most; None where anything will do.

    Attributes:
        parameters: Numbers in its weights.
        flops: Multiply-adds of its layers for one window.
        latency_ms: Median on the recipe's target, in milliseconds.
        speedup: Least speed-up over the teacher there.

    Raises:
        InvalidInput: If one of them is not above 0.
    """

    parameters: int | None = None
    flops: int | None = None
    latency_ms: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is not None and not limit > 0:  # nor is NaN
                raise InvalidInput(name, limit, "must be above 0", "Raise it, or leave it out.")


def train_superlms(
    recipe: Recipe, *, resume: bool = False, overwrite: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Train the SuperLM of each of a recipe's spaces.

    The same call goes on where an earlier one stopped.

    Args:
        recipe: The recipe, with a section `superlm`.
        resume: Go on in an output folder that another recipe began.
        overwrite: Begin again in the output folder.

    Returns:
        The history of each training by the space's name: losses while it was trained, and held-out.

    Raises:
        InvalidInput: If the recipe can't be carried out.
    """
    run = _opened(recipe, resume=resume, overwrite=overwrite)
    histories = run.train()
    run.processes.wait_for_everyone()
    return histories


def rank_superlms(recipe: Recipe) -> list[Member]:
    """Rank all members of all spaces by their loss on held-out text; write `ranking.json`.

    Returns:
        The members, the best first.

    Raises:
        InvalidInput: If a SuperLM isn't trained yet.
    """
    return _trained(recipe).rank()


def front_by_latency(recipe: Recipe) -> dict[Member, dict[str, float]]:
    """The Pareto front of held-out loss and latency over the members that are ranked.

    The members of the front that a predictor sees are measured; those stay that no other one of them beats.

    Args:
        recipe: The recipe that the SuperLMs were trained by.

    Returns:
        `latency_ms` and `speedup` over the teacher of each, from the fastest to the best. On other ranks
        than the first, an empty dict.

    Raises:
        InvalidInput: If nothing is ranked yet.
    """
    run = _trained(recipe)
    members = _ranking(run)
    if not run.processes.is_main_process:
        return {}
    latencies = _latencies(run)
    ratios = latencies.predicted([member.architecture for member in members], recipe.seed)
    likely = pareto_front(members, lambda member: (-member.loss, ratios[member.architecture]))
    front = pareto_front(likely, lambda member: (-member.loss, latencies(member.architecture).ratio))
    return {member: _measured(latencies(member.architecture)) for member in front}


def extract_student(
    recipe: Recipe,
    to: Path | None,
    budget: Budget,
    architecture: str | None = None,
    proxy: Proxy | None = None,
) -> dict[str, Any]:
    """Write the best member within a budget as a student's folder, with its card.

    Members are tried in the order of their held-out loss. Where there is a limit on latency, each is
    measured first, unless a predictor says that it can't keep to it. With a proxy task, the best of them are
    fine-tuned on it, over all ranks, and the one of the highest score is taken.

    Args:
        recipe: The recipe that the SuperLMs were trained by.
        to: The folder; None means `students/KEY` in the run folder.
        budget: What the student may cost.
        architecture: A member's key, to take that one.
        proxy: A task to choose by.

    Returns:
        What the student is: `architecture`, `space`, `loss`, `parameters`, `flops`, `folder`, its
        `latency_ms` and `speedup` where they were asked for, and `proxy` (`task`, `metric`, `score` on rows
        held out of training). On other ranks than the first, an empty dict.

    Raises:
        InvalidInput: If nothing is ranked yet, no member keeps to the budget, or the task can't be used.
    """
    run = _trained(recipe)
    members = ranking = _ranking(run)
    if architecture is not None:
        members = [member for member in members if member.architecture.key == architecture]
        if not members:
            raise InvalidInput(
                "architecture", architecture, "must be a member of a space", "ranking.json lists them."
            )
    fitting = within(members, parameters=budget.parameters, flops=budget.flops)
    if to is not None:
        on_first(partial(_check_output, to), run.processes)  # the first writes to it
    trial = None if proxy is None else ProxyTrial(run, proxy, fitting[0])
    affordable = _affordable(run, fitting, budget, 1 if proxy is None else proxy.best)
    member, chosen = next(iter(affordable)), {}
    if trial is not None:
        member, how = trial.choose(list(affordable))
        chosen = {"proxy": how}
    if not run.processes.is_main_process:
        return {}
    folder = to or run.folder / "students" / member.architecture.key
    student = {**member.as_dict(), **affordable[member], **chosen}
    about = {EXTRACTED: {**student, **_origin(run, member, ranking)}}
    run.extract(member, folder, keep=(CARD, ASIDE), beside=about)  # the new card is merged into the old one
    render_extracted_card(folder)
    return {**student, "folder": str(folder)}


def _ranking(run: SuperLMRun) -> list[Member]:
    members = run.ranking()
    if not members:
        raise InvalidInput(
            "superlm",
            run.recipe.output_dir,
            "nothing is ranked there yet",
            "Run kdnas superlm rank first, with the same recipe.",
        )
    return members


def _check_output(folder: Path) -> None:
    require_writable(folder.parent, "output", "Choose another folder.")
    ours = folder.is_dir() and ((folder / EXTRACTED).is_file() or not any(folder.iterdir()))
    if folder.exists() and not ours:
        raise InvalidInput("output", str(folder), "must be new, empty or a student", "Choose another folder.")


def _origin(run: SuperLMRun, member: Member, ranking: list[Member]) -> dict[str, Any]:
    """What a student's card tells of where it is from."""
    plan, recipe = run.plan, run.recipe
    return {
        "workflow": "superlm",
        "name": recipe.name,
        "seed": recipe.seed,
        "model_type": plan.config.model_type,
        "head": plan.head,
        "members": len(ranking),
        "rank": 1 + sum(each.loss < member.loss for each in ranking),
        "front": [each.as_dict() for each in best_by("parameters", ranking)],
        "objectives": plan.objectives,
        "training": asdict(plan.section.training),
        "task": {"dataset": full_path(source(recipe.data))},
        "teacher": {
            **teacher_source(recipe.teacher),
            "architecture": plan.teacher.key,
            "parameters": plan.parameters(plan.teacher),
            "flops": plan.teacher.flops(plan.length),
        },
        "latency_target": asdict(recipe.latency),
        "environment": environment(),
        "recipe": recipe_to_yaml(recipe),
    }


def _opened(recipe: Recipe, *, resume: bool, overwrite: bool) -> SuperLMRun:
    """The run over the recipe's folder, after a look at everything that is to be written to."""
    processes = join_processes()
    plan = plan_superlm(recipe)
    _check_ranks(plan, processes)
    folder = RunFolder(Path(recipe.output_dir))
    run = SuperLMRun(plan, folder, processes)
    if resume and not overwrite and folder.begun:
        run.check_settings()
    if overwrite or not folder.begun:  # what is wrong with the text deletes nothing, and claims no folder
        on_first(lambda: len(run.windows.held_out), processes)

    def on_disk() -> None:
        identity = recipe_fingerprint(recipe, "superlm")
        folder.open(recipe_to_yaml(recipe), identity, resume=resume, overwrite=overwrite)
        require_writable(cache_dir(), "KDNAS_CACHE", "Set it to another folder.")

    on_first(on_disk, processes)
    run.keep_settings()
    return run


def _trained(recipe: Recipe) -> SuperLMRun:
    """The run that is in the recipe's folder; its recipe stays the one of the training."""
    processes = join_processes()
    folder = RunFolder(Path(recipe.output_dir))
    if not folder.begun or not (folder / SETTINGS).is_file():
        raise InvalidInput(
            "output_dir",
            recipe.output_dir,
            "no SuperLM was trained there",
            "Run kdnas superlm train first, with the same recipe.",
        )
    run = SuperLMRun(plan_superlm(recipe), folder, processes)
    run.check_settings()
    require_writable(cache_dir(), "KDNAS_CACHE", "Set it to another folder.")
    return run


def _check_ranks(plan: SuperLMPlan, processes: PartialState) -> None:
    if plan.section.training.batch_size < processes.num_processes:
        raise InvalidInput(
            "superlm.training.batch_size",
            plan.section.training.batch_size,
            f"must be at least 1 for each of the {processes.num_processes} processes",
            "Raise it: it is the batch of all processes together.",
        )


def _affordable(
    run: SuperLMRun, members: list[Member], budget: Budget, count: int
) -> dict[Member, dict[str, float]]:
    """The best members that keep to the limits on latency, with what was measured; on every rank."""
    if budget.latency_ms is None and budget.speedup is None:
        return {member: {} for member in members[:count]}
    return on_first(lambda: dict(islice(_fast_enough(run, members, budget), count)), run.processes)


def _fast_enough(
    run: SuperLMRun, members: list[Member], budget: Budget
) -> Iterator[tuple[Member, dict[str, float]]]:
    """The members that keep to the limits on latency, each measured when it is asked for.

    Raises:
        InvalidInput: If none does.
    """
    latencies = _latencies(run)
    try:
        promising = latencies.promising([member.architecture for member in members], budget, run.recipe.seed)
    except InvalidInput as error:
        raise InvalidInput(
            error.field.rpartition(".")[2], error.given, error.allowed, error.remedy
        ) from error
    found = False
    for member in members:
        if member.architecture in promising and latencies.within(member.architecture, budget):
            found = True
            yield member, _measured(latencies(member.architecture))
    if not found:
        limits = {"latency_ms": budget.latency_ms, "speedup": budget.speedup}
        asked = {name: limit for name, limit in limits.items() if limit is not None}
        raise InvalidInput(
            " and ".join(asked),
            " and ".join(map(str, asked.values())),
            "no member that was predicted to keep to it did so when it was measured",
            "Ask for less.",
        )


def _latencies(run: SuperLMRun) -> ShapeLatencies:
    """What measures members on the recipe's target, beside the teacher."""
    plan, recipe = run.plan, run.recipe
    return ShapeLatencies(
        config=plan.config,
        model_class=plan.model_class,
        target=LatencyTarget(**vars(recipe.latency)),
        exporter=get_exporter(recipe.export.backend),
        store=LatencyStore(cache_dir() / "latency"),
    )


def _measured(report: LatencyReport) -> dict[str, float]:
    return {"latency_ms": report.median_ms, "speedup": report.speedup}
