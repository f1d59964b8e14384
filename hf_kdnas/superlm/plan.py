"""What a SuperLM recipe comes to, checked as far as can be before any expensive work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.criterion import check_objectives
from hf_kdnas.errors import InvalidInput, written_as
from hf_kdnas.families import get_family
from hf_kdnas.plan import check_activations, make_space
from hf_kdnas.recipe import (
    DataSection,
    DistillationSection,
    SearchSection,
    SignalsSection,
    SpaceSection,
)
from hf_kdnas.recipe_checks import check_name, check_section
from hf_kdnas.recipe_files import default_of, read_section
from hf_kdnas.slicing import parameter_counter
from hf_kdnas.space import partition
from hf_kdnas.superlm.losses import MemberLosses
from hf_kdnas.superlm.spaces import check_relation_heads, relation_heads
from hf_kdnas.tasks.base import auto_class
from hf_kdnas.teacher import load_config, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_kdnas.recipe import Recipe, SuperLMSection
    from hf_kdnas.space import SearchSpace

# About the output distribution over the vocabulary: too large to keep for held-out text.
OUTPUT_OBJECTIVES = ("mlm",)

# What members are ranked by: the first of these that they learn from. AutoDistil ranks by the self-attention
# loss; that of hidden states outweighs it, and can't be compared between widths.
RANKED_BY = ("relations", "attention", "hidden")

# Settings of rows that are read whole.
_OF_ROWS = (
    *("where", "group", "group_contained", "limit", "label", "labels", "metric"),
    *("reporting_fraction", "selection_fraction", "split_seed", "stride"),
)

# What a teacher has to have as much of as any member.
_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size")

ALLOWED_OBJECTIVES = (*RANKED_BY, *OUTPUT_OBJECTIVES)


@dataclass(frozen=True)
class SuperLMPlan:
    """A SuperLM recipe, resolved.

    Attributes:
        recipe: The recipe.
        config: The teacher's config.
        head: Head of the teacher and its students, what stands after `AutoModelFor`; empty for encoders.
        tokenizer: The teacher's.
        spaces: The spaces by name.
        objectives: What members learn, for all spaces alike.
        length: Tokens of a window.
    """

    recipe: Recipe
    config: PretrainedConfig
    head: str
    tokenizer: PreTrainedTokenizerBase
    spaces: dict[str, SearchSpace]
    objectives: dict[str, dict[str, Any]]
    length: int

    @property
    def section(self) -> SuperLMSection:
        """The recipe's own section."""
        assert self.recipe.superlm is not None
        return self.recipe.superlm

    @property
    def ranking_objectives(self) -> dict[str, dict[str, Any]]:
        """What members are ranked by: one objective, whatever its weight is in the training."""
        learned = check_objectives(self.objectives)
        name = next(each for each in RANKED_BY if each in learned)
        options = {option: value for option, value in self.objectives[name].items() if option != "weight"}
        return {name: options}

    @property
    def kept_objectives(self) -> dict[str, dict[str, Any]]:
        """Those whose teacher signals are kept on held-out text."""
        return {name: each for name, each in self.objectives.items() if name not in OUTPUT_OBJECTIVES}

    @property
    def teacher(self) -> Architecture:
        """The teacher's shape."""
        return Architecture.from_config(self.config)

    @property
    def model_class(self) -> type[Any]:
        """Class of the teacher and its students."""
        found: type[Any] = auto_class(self.head)._model_mapping[type(self.config)]
        return found

    @cached_property
    def parameters(self) -> Callable[[Architecture], int]:
        """Counts the parameters of a student."""
        return parameter_counter(self.model_class, self.config)

    def losses(
        self, objectives: dict[str, dict[str, Any]], projection: torch.Tensor | None, device: torch.device
    ) -> MemberLosses:
        """The losses of all spaces' members.

        Raises:
            InvalidInput: If an objective can't serve all members.
        """
        members = chain.from_iterable(self.spaces.values())
        return MemberLosses(objectives, self.teacher, members, projection=projection, device=device)


def plan_superlm(recipe: Recipe) -> SuperLMPlan:
    """Load what is cheap, and check that everything in the recipe fits together.

    Raises:
        InvalidInput: Naming the first thing that doesn't.
        MissingPackage: If a package is missing, with the line that installs it.
    """
    section = recipe.superlm
    if section is None:
        raise InvalidInput(
            "superlm",
            "nothing",
            "this recipe has no such section",
            "Add one (kdnas recipes show autodistil_minilm), or take kdnas search or kdnas distill.",
        )
    if recipe.push_to_hub:
        raise InvalidInput(
            "push_to_hub",
            True,
            "SuperLMs are not published, their students are",
            "Leave it out; publish what kdnas superlm extract writes: kdnas publish FOLDER REPO_ID.",
        )
    _check_section(section)
    _check_data(recipe.data)
    _check_unused(recipe)
    head = "MaskedLM" if set(OUTPUT_OBJECTIVES) & section.objectives.keys() else ""
    config = load_config(recipe.teacher, head)
    tokenizer = load_tokenizer(recipe.teacher, config, task="fill-mask")
    if head and tokenizer.mask_token_id is None:
        raise InvalidInput(
            "superlm.objectives",
            ", ".join(section.objectives),
            f"{' and '.join(OUTPUT_OBJECTIVES)} hides tokens, and the teacher's tokenizer has no mask token",
            "Leave it out, or choose a teacher that was trained by masked language modelling.",
        )
    spaces = _spaces(section, config, auto_class(head)._model_mapping[type(config)])
    plan = SuperLMPlan(
        recipe=recipe,
        config=config,
        head=head,
        tokenizer=tokenizer,
        spaces=spaces,
        objectives=_completed(section, spaces, Architecture.from_config(config)),
        length=min(recipe.data.max_length, get_family(config).max_length(config)),
    )
    projection = torch.eye(plan.teacher.hidden_size) if section.initialisation != "random" else None
    plan.losses(plan.objectives, projection, torch.device("cpu"))
    return plan


def _check_section(section: SuperLMSection) -> None:
    for name in section.objectives:
        if name not in ALLOWED_OBJECTIVES:
            raise InvalidInput(
                "superlm.objectives",
                name,
                f"a SuperLM learns from {', '.join(ALLOWED_OBJECTIVES)}",
                "Choose some of these.",
            )
    if not check_objectives(section.objectives).keys() - set(OUTPUT_OBJECTIVES):
        raise InvalidInput(
            "superlm.objectives",
            ", ".join(section.objectives),
            "members are ranked by relations, hidden or attention, and none of these is there",
            "Add relations: {loss: mse}.",
        )


def _check_data(data: DataSection) -> None:
    """Refuse what is about rows that are held in memory, or about their labels."""
    default = DataSection(path=data.path, task=data.task)
    for name in _OF_ROWS:
        if getattr(data, name) != getattr(default, name):
            raise InvalidInput(
                f"data.{name}",
                getattr(data, name),
                "the text of a SuperLM is streamed as it is",
                "Leave it out, and give a file with the text that you want.",
            )
    if len(data.text) > 1:
        raise InvalidInput(
            "data.text", data.text, "the text of a SuperLM is one column", "Choose one of these."
        )


def _check_unused(recipe: Recipe) -> None:
    """Refuse what other commands read, rather than train something else than was asked for."""
    unused = {
        "teacher.fine_tune": (recipe.teacher.fine_tune, "a SuperLM learns from the teacher as it is", None),
        "report_to": (
            recipe.report_to,
            "a SuperLM's losses are told in spaces/NAME/history.json alone",
            ["none"],
        ),
        "distillation": (
            recipe.distillation,
            "a SuperLM is trained as superlm.training and superlm.objectives say",
            DistillationSection(signals=SignalsSection(precision=recipe.distillation.signals.precision)),
        ),
        "student": (
            recipe.student,
            "SuperLMs are of superlm.spaces or superlm.partitions",
            default_of(type(recipe), "student"),
        ),
        "search": (recipe.search, "members are ranked, then pulled by options of extract", SearchSection()),
        "space": (
            recipe.space,
            "the spaces of SuperLMs are superlm.spaces or superlm.partitions",
            SpaceSection(),
        ),
    }
    for key, (given, why, default) in unused.items():
        if given != default:
            raise InvalidInput(key, given, why, "Leave it out.")


def _spaces(
    section: SuperLMSection, config: PretrainedConfig, model_class: type[Any]
) -> dict[str, SearchSpace]:
    if section.spaces:
        if section.partitions != default_of(type(section), "partitions"):
            raise InvalidInput(
                "superlm.partitions",
                section.partitions,
                "cuts spaces from the teacher, where superlm.spaces gives none",
                "Leave one of them out.",
            )
        return {name: _space(name, section, config, model_class) for name in section.spaces}
    try:
        cut = partition(config, section.partitions)
    except InvalidInput as error:
        raise InvalidInput("superlm.partitions", error.given, error.allowed, error.remedy) from error
    return {f"space-{number}": space for number, space in enumerate(cut, start=1)}


def _space(
    name: str, section: SuperLMSection, config: PretrainedConfig, model_class: type[Any]
) -> SearchSpace:
    """One of the recipe's own spaces."""
    key, values = f"superlm.spaces.{name}", section.spaces[name]
    check_name("superlm.spaces", name)
    written = read_section(SpaceSection, values, key)
    check_section(written, f"{key}.")
    teacher, cut = Architecture.from_config(config), section.initialisation != "random"
    if cut:
        listed = ((name, size) for name in _SIZES for size in getattr(written, name) or ())
        larger = (f"{name} {size}" for name, size in listed if size > getattr(teacher, name))
        _refuse_larger(key, larger, teacher)
    with written_as(key, "space"):
        space = make_space(written, config, "random", parameter_counter(model_class, config))
        check_activations(space)
    if cut:  # a preset's members, too
        _refuse_larger(key, (member.key for member in space if not member.fits_into(teacher)), teacher)
    return space


def _refuse_larger(key: str, larger: Iterable[str], teacher: Architecture) -> None:
    for first in larger:
        raise InvalidInput(
            key,
            first,
            f"no member may be wider or deeper than the teacher, {teacher.key}",
            "List smaller sizes, or set superlm.initialisation: random.",
        )


def _completed(
    section: SuperLMSection, spaces: dict[str, SearchSpace], teacher: Architecture
) -> dict[str, dict[str, Any]]:
    """The objectives, relations with one number of heads for all members and the teacher's last layer."""
    members = tuple(chain.from_iterable(spaces.values()))
    objectives = {name: dict(options or {}) for name, options in section.objectives.items()}
    own_heads = objectives.get("relations", {}).get("relation_heads")
    if section.relation_heads is not None and ("relations" not in objectives or own_heads is not None):
        raise InvalidInput(
            "superlm.relation_heads",
            section.relation_heads,
            f"the objective relations has its own, {own_heads}" if own_heads else "no objective has any",
            "Leave it out.",
        )
    heads = own_heads or section.relation_heads
    if heads is None:
        heads = relation_heads(members, teacher)
    else:
        check_relation_heads(heads, members, teacher)
    if "relations" in objectives:
        own = {"teacher_layer": teacher.num_hidden_layers}
        objectives["relations"] = own | objectives["relations"] | {"relation_heads": heads}
    return objectives
