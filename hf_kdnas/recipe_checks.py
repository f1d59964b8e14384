"""What a recipe is refused for before anything is loaded; like the recipe, without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_kdnas.baselines import BASELINES
from hf_kdnas.distill.weights import OFF, Weight
from hf_kdnas.errors import InvalidInput
from hf_kdnas.metrics import GLUE
from hf_kdnas.recipe_files import nearest, walk_options

if TYPE_CHECKING:
    from hf_kdnas.recipe import DataSection, DistillationSection, EvaluationSection, Recipe, SearchSection

OBJECTIVE_NAMES = (
    "logits",
    "hidden",
    "embeddings",
    "attention",
    "relations",
    "direct_relations",
    "sentence",
    "mlm",
    "task",
)
SAMPLER_NAMES = ("kdnas", "random", "tpe", "nsga2")

# Arguments of a training that a recipe has a field of its own for.
_OWN_FIELDS = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_gpu_train_batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "warmup_ratio": "warmup_fraction",
    "warmup_steps": "warmup_fraction",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "dropout": "dropout",
    "bf16": "precision",
    "fp16": "precision",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "objectives": "distillation.objectives",
    "teacher_dtype": "teacher.dtype",
    "output_dir": "output_dir",
    "run_name": "name",
    "seed": "seed",
    "report_to": "report_to",
    "push_to_hub": "push_to_hub",
    "hub_model_id": "hub_model_id",
    "hub_private_repo": "hub_private_repo",
}

# TrainingArguments that want a data set to evaluate on while a model is trained.
_EVALUATING = ("do_eval", "eval_on_start", "eval_strategy", "evaluation_strategy", "load_best_model_at_end")


def check_recipe(recipe: Recipe) -> None:
    """Check a recipe as far as it can be without the teacher and the data.

    Raises:
        InvalidInput: Naming the first value that can't be used.
    """
    check_name("name", recipe.name)
    check_section(recipe)
    _check_columns(recipe.data)
    if recipe.data.reporting_split == recipe.data.train_split:
        raise InvalidInput(
            "data.reporting_split",
            recipe.data.reporting_split,
            "it is data.train_split, and rows that are trained on prove nothing",
            "Name another, or leave it out: data.reporting_fraction is cut from the training split then.",
        )
    if recipe.data.task in UNLABELLED:
        _check_unlabelled(recipe)
    _check_objectives("distillation.objectives", recipe.distillation.objectives)
    _check_initialisation(recipe.distillation)
    _check_search(recipe.search)
    if recipe.search.finalise == "homotopic" and recipe.homotopic and recipe.homotopic.target is not None:
        raise InvalidInput(
            "homotopic.target",
            recipe.homotopic.target,
            "search.finalise: homotopic narrows finalists to the shapes that the search finds",
            "Leave it out, or set search.finalise: distill.",
        )
    if recipe.search.quality == "hidden_states" and "hidden" not in recipe.distillation.objectives:
        raise InvalidInput(
            "search.quality",
            "hidden_states",
            f"the objectives are {', '.join(recipe.distillation.objectives)}",
            "Add hidden to distillation.objectives, or set metric.",
        )
    for key, section in (
        ("teacher.fine_tune", recipe.teacher.fine_tune),
        ("distillation.training", recipe.distillation.training),
    ):
        if section is not None:
            _check_training_arguments(key, section.training_arguments)
    if recipe.search.proxy.training_arguments:
        raise InvalidInput(
            "search.proxy.training_arguments",
            recipe.search.proxy.training_arguments,
            "candidates are trained by a loop of this package, which reads none of them",
            "Leave it out.",
        )
    if recipe.compare is not None:
        _check_list("compare.seeds", recipe.compare.seeds)
        _check_compared(recipe.compare.objectives)
    _check_augmentation(recipe)


def check_name(key: str, name: Any) -> None:
    """Refuse what can't be part of folder and repository names.

    Args:
        key: The setting, for the message.
        name: What is named.
    """
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*", name)):
        raise InvalidInput(
            key,
            name,
            "may hold letters, digits, dot, dash and underscore",
            "It becomes part of folder and repository names: take another.",
        )


def check_section(section: Any, prefix: str = "") -> None:
    """Compare every value with its limits and choices.

    Args:
        section: A recipe or one of its sections.
        prefix: Dotted name of the section with a dot at its end, for the message.

    Raises:
        InvalidInput: If a value lies outside.
    """
    for option in walk_options(section, prefix):
        option.check()


def check_evaluation(section: EvaluationSection) -> None:
    """Check the settings of an evaluation as far as it can be without the model and the data.

    Raises:
        InvalidInput: Naming the first value that can't be used.
    """
    for name in ("tasks", "seeds", "learning_rates", "epochs", "batch_sizes"):
        _check_list(name, getattr(section, name))
    for name in section.tasks:
        if name not in GLUE:
            raise InvalidInput("tasks", name, f"tasks of GLUE are {', '.join(GLUE)}", nearest(name, GLUE))
    check_section(section)


def _check_list(key: str, values: Sequence[Any]) -> None:
    if not values or len(set(values)) < len(values):
        raise InvalidInput(key, values, "must hold at least one, and each once", "Change the list.")


# How many text columns a task has, and which.
_TEXTS = {
    "text-classification": (
        (1, 2),
        "one column, or two different ones",
        "Two columns are read as a pair of texts.",
    ),
    "token-classification": ((1,), "one column", "It holds the lists of words."),
    "question-answering": ((2,), "two different columns", "They hold question and context."),
    "fill-mask": ((1,), "one column", "It holds texts."),
    "sentence-similarity": ((1,), "one column", "It holds texts."),
}

# Tasks whose texts others can be made of.
_AUGMENTED = ("text-classification", "sentence-similarity")

# Tasks that learn from texts alone.
UNLABELLED = ("fill-mask", "sentence-similarity")


def _check_columns(data: DataSection) -> None:
    wanted, names, remedy = _TEXTS[data.task]
    if len(data.text) not in wanted or len(set(data.text)) < len(data.text):
        raise InvalidInput("data.text", data.text, f"must name {names}", remedy)
    if data.group and data.group_contained:
        raise InvalidInput(
            "data.group_contained", True, "data.group already says what belongs together", "Set one of them."
        )
    if data.label in data.text:
        raise InvalidInput(
            "data.text", data.text, f"{data.label} is the column of the labels", "Choose another column."
        )


def _check_unlabelled(recipe: Recipe) -> None:
    task = recipe.data.task
    for name in ("label", "labels"):
        given = getattr(recipe.data, name)
        if given:
            raise InvalidInput(f"data.{name}", given, f"{task} learns from texts alone", "Leave it out.")
    if recipe.teacher.fine_tune is not None:
        raise InvalidInput(
            "teacher.fine_tune",
            f"{recipe.teacher.fine_tune.epochs} epochs",
            f"there are no labels in {task}: the teacher is taken as it is",
            "Set it to null.",
        )


def _check_augmentation(recipe: Recipe) -> None:
    key, copies, data = (
        "distillation.augmentation.copies",
        recipe.distillation.augmentation.copies,
        recipe.data,
    )
    if not copies:
        return
    if data.task not in _AUGMENTED or len(data.text) != 1:
        raise InvalidInput(
            key,
            copies,
            f"texts are made for tasks about single texts ({', '.join(_AUGMENTED)})",
            f"Set it to 0 for {data.task} of {' and '.join(data.text)}.",
        )
    compared = recipe.compare.objectives if recipe.compare is not None else {}
    for where, objectives in (("distillation", recipe.distillation.objectives), *compared.items()):
        if "task" in objectives and (len(objectives) > 1 or where == "distillation"):
            raise InvalidInput(
                key,
                copies,
                f"made texts have no labels, which the objective task of {where} learns from",
                "Remove the objective, or set it to 0.",
            )


def _check_objectives(key: str, objectives: Mapping[str, Mapping[str, Any]]) -> None:
    if not objectives:
        raise InvalidInput(key, {}, "at least one is needed", f"Choose of {', '.join(OBJECTIVE_NAMES)}.")
    for name, options in objectives.items():
        if name not in OBJECTIVE_NAMES and ":" not in name:
            raise InvalidInput(
                key,
                name,
                f"objectives are {', '.join(OBJECTIVE_NAMES)}, or package.module:Class",
                nearest(name, OBJECTIVE_NAMES),
            )
        _check_weight(f"{key}.{name}.weight", options.get("weight", 1.0))


def _check_compared(sets: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    if not sets:
        raise InvalidInput(
            "compare.objectives", {}, "at least one set is needed", "Add one, or set compare to null."
        )
    for name, objectives in sets.items():
        _check_objectives(f"compare.objectives.{name}", objectives)


def _check_weight(key: str, weight: Any) -> None:
    if Weight.parse(key, weight) == OFF:
        raise InvalidInput(key, weight, "must be above 0", "To drop it, remove the objective.")


def _check_initialisation(distillation: DistillationSection) -> None:
    method, superlm = distillation.initialisation, distillation.superlm
    if method == "superlm" and superlm is None:
        raise InvalidInput(
            "distillation.superlm",
            "nothing",
            "initialisation: superlm needs the folder of a trained SuperLM",
            "Give that of a run of kdnas superlm train, or choose another initialisation.",
        )
    if method != "superlm" and superlm is not None:
        raise InvalidInput(
            "distillation.superlm",
            superlm,
            f"initialisation: {method} does not read it",
            "Set distillation.initialisation: superlm, or leave it out.",
        )


def _check_search(search: SearchSection) -> None:
    if search.sampler not in SAMPLER_NAMES and ":" not in search.sampler:
        raise InvalidInput(
            "search.sampler",
            search.sampler,
            f"samplers are {', '.join(SAMPLER_NAMES)}, or package.module:Class",
            nearest(search.sampler, SAMPLER_NAMES),
        )
    if search.sampler == "random" and search.random_baseline:
        raise InvalidInput(
            "search.random_baseline",
            True,
            "the search itself is a random one",
            "Leave it out, or choose another search.sampler.",
        )
    for name in search.baselines:
        if name not in BASELINES:
            _check_architecture_key(name)
    if search.storage and re.match(r"[a-z][a-z\d+]*:(?!//)", search.storage):
        raise InvalidInput(
            "search.storage",
            search.storage,
            "a database is named by a URL such as sqlite:///FILE or postgresql://USER@HOST/DATABASE",
            "Write two slashes behind the colon, or give a journal file's path.",
        )
    if search.finalists > search.episodes * search.candidates:
        raise InvalidInput(
            "search.finalists",
            search.finalists,
            f"the search tries {search.episodes * search.candidates} candidates (episodes x candidates)",
            "Ask for fewer finalists or more candidates.",
        )


def _check_architecture_key(key: str) -> None:
    from hf_kdnas.architecture import Architecture

    try:
        Architecture.parse(key)
    except InvalidInput as error:
        raise InvalidInput(
            "search.baselines",
            key,
            f"baselines are {', '.join(BASELINES)}, or keys such as 4L-312H-1200F-12A-gelu ({error})",
            nearest(key, BASELINES),
        ) from None


def _check_training_arguments(section: str, arguments: Mapping[str, Any]) -> None:
    for name in arguments:
        if name in _OWN_FIELDS:
            raise InvalidInput(
                f"{section}.training_arguments",
                name,
                "the recipe has a key of its own for it",
                f"Set {_OWN_FIELDS[name]} in place of it.",
            )
        if name in _EVALUATING and arguments[name] not in ("no", False):
            raise InvalidInput(
                f"{section}.training_arguments.{name}",
                arguments[name],
                "a run scores its models by itself, after the training",
                "Leave it out.",
            )
