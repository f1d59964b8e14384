"""What a recipe comes to, checked as far as can be before any expensive work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_kdnas.architecture import Architecture
from hf_kdnas.baselines import baseline_architecture
from hf_kdnas.comparison import compared_sets
from hf_kdnas.distill.arguments import training_arguments
from hf_kdnas.distill.augmentation import with_spliced
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.training import shared_arguments
from hf_kdnas.errors import InvalidInput, written_as
from hf_kdnas.families import get_family
from hf_kdnas.given_student import check_tokenizer, is_model, student_architecture
from hf_kdnas.given_superlm import KEY as SUPERLM
from hf_kdnas.given_superlm import find_superlms
from hf_kdnas.latency.export import get_exporter
from hf_kdnas.latency.target import LatencyTarget
from hf_kdnas.recipe_files import nearest
from hf_kdnas.search.sampler import check_sampler
from hf_kdnas.search.trackers import check_trackers
from hf_kdnas.slicing import parameter_counter
from hf_kdnas.space import DIMENSIONS, Constraint, SearchSpace
from hf_kdnas.tasks import TASKS, SentenceEmbeddings, TaskData, load_task
from hf_kdnas.teacher import has_head, load_config, load_tokenizer, with_task_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_kdnas.given_superlm import GivenSuperLMs
    from hf_kdnas.latency.export.base import Exporter
    from hf_kdnas.recipe import Recipe, SpaceSection
    from hf_kdnas.tasks import Row


@dataclass(frozen=True)
class Plan:
    """A recipe, resolved.

    Attributes:
        workflow: `search`, `distill` or `homotopic`.
        recipe: The recipe.
        config: The teacher's config with the task's head.
        model_class: Class of the teacher and its students.
        tokenizer: The teacher's.
        task: The task, with its rows.
        space: The members that can be made.
        baselines: Hand-crafted shapes by name.
        exporter: Makes ONNX files.
        target: Where latency is measured.
        superlms: What students are cut from in place of the teacher; None where there is nothing such.
        student: A model that brings its own weights, as the only student; None where students are made
            of the teacher.
        objectives: All sets of objectives that students are distilled with.
    """

    workflow: Literal["search", "distill", "homotopic"]
    recipe: Recipe
    config: PretrainedConfig
    model_class: type[Any]
    tokenizer: PreTrainedTokenizerBase
    task: TaskData
    space: SearchSpace
    baselines: dict[str, Architecture]
    exporter: Exporter
    target: LatencyTarget
    superlms: GivenSuperLMs | None
    student: str | None
    objectives: tuple[dict[str, dict[str, Any]], ...]

    @property
    def teacher(self) -> Architecture:
        """The teacher's shape."""
        return Architecture.from_config(self.config)

    @cached_property
    def distilled_rows(self) -> Sequence[Row]:
        """The rows that students learn from: the training rows, and what augmentation makes of them."""
        augmentation, task = self.recipe.distillation.augmentation, self.task
        return with_spliced(
            task.train,
            augmentation.copies,
            augmentation.replaced,
            task.max_length,
            self.recipe.data.split_seed,
        )

    @cached_property
    def parameters(self) -> Callable[[Architecture], int]:
        """Counts the parameters of a student."""
        return parameter_counter(self.model_class, self.config)


@dataclass(frozen=True)
class _Basis:
    """A teacher's config and its task, before anything is known of students.

    Attributes:
        config: The teacher's config with the task's head.
        model_class: Class of the teacher and its students.
        tokenizer: The teacher's.
        task: The task, with its rows.
        exporter: Makes ONNX files.
        target: Where latency is measured.
        superlms: What students are cut from in place of the teacher; None where there is nothing such.
    """

    config: PretrainedConfig
    model_class: type[Any]
    tokenizer: PreTrainedTokenizerBase
    task: TaskData
    exporter: Exporter
    target: LatencyTarget
    superlms: GivenSuperLMs | None

    @property
    def origins(self) -> list[Architecture]:
        """The shapes that students may be cut from."""
        if self.superlms is None:
            return [Architecture.from_config(self.config)]
        return list(self.superlms.shapes.values())


def plan_search(recipe: Recipe) -> Plan:
    """Load what is cheap, and check that everything in the recipe fits together for a search.

    Raises:
        InvalidInput: Naming the first thing that doesn't.
        MissingPackage: If a package is missing, with the line that installs it.
    """
    check_sampler(recipe.search.sampler)
    if recipe.compare is not None:
        raise InvalidInput(
            "compare",
            [*recipe.compare.objectives],
            "a search trains every student from distillation.objectives",
            "Leave it out, or compare signals for the student that it finds: kdnas distill --student ...",
        )
    known = _load(recipe)
    teacher = Architecture.from_config(known.config)
    initialisation = recipe.distillation.initialisation
    baselines = {name: baseline_architecture(name, teacher) for name in recipe.search.baselines}
    _check_fits("search.baselines", baselines, known, initialisation)
    parameters = parameter_counter(known.model_class, known.config)
    space = make_space(recipe.space, known.config, initialisation, parameters, known.origins)
    space = _within_parameters(recipe.search.constraints.parameters, space, parameters)
    return _checked(
        Plan(
            "search",
            recipe,
            **vars(known),
            space=space,
            baselines=baselines,
            student=None,
            objectives=(recipe.distillation.objectives,),
        )
    )


def plan_distillation(recipe: Recipe) -> Plan:
    """What `plan_search` is to a search, for a distillation of the recipe's `student` alone.

    Raises:
        InvalidInput: Naming the first thing that doesn't fit.
        MissingPackage: If a package is missing, with the line that installs it.
    """
    known = _load(recipe)
    student = student_architecture(recipe.student, known.config, recipe.student_revision)
    given = recipe.student if is_model(recipe.student) else None
    if given is None:
        _check_fits("student", {recipe.student: student}, known, recipe.distillation.initialisation)
    elif known.superlms is not None:
        raise InvalidInput(
            "student", given, "a model brings its own weights", "Give a shape, or no distillation.superlm."
        )
    else:
        check_tokenizer("student", given, known.tokenizer, recipe.student_revision)
    space = SearchSpace({name: (getattr(student, name),) for name in DIMENSIONS}, head_size=student.head_size)
    return _checked(
        Plan(
            "distill",
            recipe,
            **vars(known),
            space=space,
            baselines={},
            student=given,
            objectives=(recipe.distillation.objectives, *compared_sets(recipe).values()),
        )
    )


def _load(recipe: Recipe) -> _Basis:
    check_trackers(recipe.report_to)
    if recipe.latency.precision != "fp32":
        raise InvalidInput(
            "latency.precision",
            recipe.latency.precision,
            "students are compared in fp32; the winner's INT8 file is measured beside it (export.int8)",
            "Leave it out. kdnas latency --precision int8 measures any model.",
        )
    target = LatencyTarget(**vars(recipe.latency))
    exporter = get_exporter(recipe.export.backend)
    config = load_config(recipe.teacher, TASKS[recipe.data.task].head)
    longest = get_family(config).max_length(config)
    _check_length(recipe, longest)
    superlm = recipe.distillation.superlm
    superlms = None if superlm is None else find_superlms(superlm, config)
    tokenizer = load_tokenizer(recipe.teacher, config, task=recipe.data.task)
    for folder in superlms.shapes if superlms else ():
        check_tokenizer(SUPERLM, str(folder), tokenizer)
    task = load_task(recipe.data, tokenizer, max_length=longest).of_teacher(recipe.teacher)
    if recipe.teacher.fine_tune is None and has_head(config, task.head):
        task = task.matched_to(config)
    config = with_task_head(config, task)
    model_class = task.head_class._model_mapping[type(config)]
    return _Basis(config, model_class, tokenizer, task, exporter, target, superlms)


def _checked(plan: Plan) -> Plan:
    check_activations([*plan.space, *plan.baselines.values()])
    _check_training(plan)
    return plan


def make_space(
    section: SpaceSection,
    config: PretrainedConfig,
    initialisation: str,
    parameters: Callable[[Architecture], int],
    origins: Sequence[Architecture] = (),
) -> SearchSpace:
    """The recipe's search space: a preset, the dimensions that it lists, and its constraints.

    Args:
        section: The recipe's space.
        config: The teacher's config.
        initialisation: How students begin; unless it is `random`, each has to fit into one of `origins`.
        parameters: Counts a student's parameters.
        origins: Shapes that students are cut from; none means the teacher's.

    Raises:
        InvalidInput: If no member is left, naming the constraint that emptied it, or a head count is listed
            that divides no hidden size.
    """
    teacher, family = Architecture.from_config(config), get_family(config)
    preset = SearchSpace.preset(section.preset, teacher)
    listed = {name: getattr(section, name) for name in DIMENSIONS if getattr(section, name) is not None}
    if "head_size" not in family.config_fields:
        preset = preset.native()
        _check_heads({**preset.dimensions, **listed}, listed.get("num_attention_heads", ()))
    constraints: dict[str, Constraint] = dict(preset.constraints)
    if initialisation == "random" and any(
        size > getattr(teacher, name)
        for name, sizes in listed.items()
        if name != "hidden_act"
        for size in sizes
    ):
        constraints.pop("cut from the teacher", None)  # nothing is, and larger ones are asked for
    constraints["a stock config of the teacher's type"] = lambda member: family.allows_width(
        config, member.hidden_size
    )
    if "num_attention_heads" in listed:
        constraints.pop("head size", None)  # the preset's way to choose head counts
    if initialisation != "random":
        origins = origins or [teacher]
        constraints[f"initialisation: {initialisation} (no wider or deeper than {_either(origins)})"] = (
            lambda member: any(map(member.fits_into, origins))
        )
    if section.max_parameters is not None:
        most = section.max_parameters
        constraints["space.max_parameters"] = lambda member: parameters(member) <= most
    return preset.changed(listed, constraints)


def _check_heads(dimensions: Mapping[str, Sequence[Any]], heads: Iterable[int]) -> None:
    """Refuse a head count that no member of a stock config would have."""
    widths = list(dimensions["hidden_size"])
    for count in heads:
        if all(width % count for width in widths):
            raise InvalidInput(
                "space.num_attention_heads",
                count,
                f"must divide a hidden size out of {widths}",
                "Leave it out, or list hidden sizes that it divides.",
            )


def _check_fits(key: str, shapes: dict[str, Architecture], known: _Basis, initialisation: str) -> None:
    origin = "the teacher" if known.superlms is None else "the SuperLM"
    for name, architecture in shapes.items():
        with written_as(f"{key}.{name}."):
            architecture.apply_to(known.config)
        if initialisation != "random" and not any(map(architecture.fits_into, known.origins)):
            raise InvalidInput(
                key,
                name,
                f"{architecture.key} can't be cut from {origin}, {_either(known.origins)}",
                "Choose another, or set distillation.initialisation: random.",
            )


def _either(shapes: Iterable[Architecture]) -> str:
    return " or ".join(shape.key for shape in shapes)


def _check_length(recipe: Recipe, most: int) -> None:
    if recipe.latency.sequence_length > most:
        raise InvalidInput(
            "latency.sequence_length",
            recipe.latency.sequence_length,
            f"this teacher takes {most} tokens at most",
            "Choose a shorter length.",
        )


def check_activations(shapes: Iterable[Architecture]) -> None:
    """See that Transformers has the activations of all shapes.

    Raises:
        InvalidInput: Naming the first that it has not.
    """
    from transformers.activations import ACT2FN

    for name in {shape.hidden_act for shape in shapes} - ACT2FN.keys():
        known = sorted(ACT2FN)
        raise InvalidInput(
            "space.hidden_act", name, f"activations are {', '.join(known)}", nearest(name, known)
        )


def _within_parameters(
    most: int | None, space: SearchSpace, parameters: Callable[[Architecture], int]
) -> SearchSpace:
    """The space without members that are too large to win: no candidate is wasted on them."""
    if most is None:
        return space
    smallest = min(space, key=parameters)
    if parameters(smallest) > most:
        raise InvalidInput(
            "search.constraints.parameters",
            most,
            f"the smallest architecture of the space, {smallest.key}, has {parameters(smallest)}",
            "Ask for more, or add smaller architectures to the space.",
        )
    return space.restricted({"search.constraints.parameters": lambda member: parameters(member) <= most})


def _check_training(plan: Plan) -> None:
    """Build criteria and arguments once, so that what they refuse is refused now."""
    recipe = plan.recipe
    compared = {f"compare.objectives.{name}": each for name, each in compared_sets(recipe).items()}
    # Objectives look at depth and width alone.
    kinds = {
        (each.num_hidden_layers, each.attention_size): each
        for each in [*plan.space, *plan.baselines.values()]
    }
    for key, objectives in {"distillation.objectives": recipe.distillation.objectives, **compared}.items():
        with written_as(key, "objectives"):
            _check_objectives(objectives, plan.task)
            for architecture in kinds.values():
                DistillationCriterion(objectives, architecture, plan.teacher)
    for key, section, arguments in (
        ("teacher.fine_tune", recipe.teacher.fine_tune, shared_arguments),
        ("distillation.training", recipe.distillation.training, shared_arguments),
        ("search.proxy", recipe.search.proxy, training_arguments),
    ):
        if section is not None:
            with written_as(f"{key}."):
                arguments(section, Path(recipe.output_dir), objectives=recipe.distillation.objectives)


def _check_objectives(objectives: Mapping[str, Mapping[str, Any]], task: TaskData) -> None:
    """Refuse objectives that this task has no signals for, or another pooling than the task's."""
    for name in sorted(task.unfit_objectives & objectives.keys()):
        raise InvalidInput(
            "objectives",
            name,
            f"{task.kind} has nothing for {', '.join(sorted(task.unfit_objectives))}",
            "Choose others, such as {sentence: {}, hidden: {}}."
            if "logits" in task.unfit_objectives
            else "Set data.task: fill-mask, or choose others.",
        )
    pooling = objectives.get("sentence", {}).get("pooling", "mean")
    if isinstance(task, SentenceEmbeddings) and "sentence" in objectives and pooling != task.pooling:
        raise InvalidInput(
            "objectives.sentence.pooling",
            pooling,
            f"the teacher's vectors are made by {task.pooling}",
            f"Set pooling: {task.pooling}.",
        )
