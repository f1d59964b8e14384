"""Reorder a model so that its important units come first, and cut smaller students from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import Axis, Family, get_family
from hf_kdnas.importance import Importance, UnitGroup, unit_dimensions

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

# Groups whose units are heads, or units inside heads.
HEAD_GROUPS = ("heads", "per_head")


def parameter_counter(
    model_class: type[PreTrainedModel], config: PretrainedConfig
) -> Callable[[Architecture], int]:
    """A function that counts the parameters of students by the structural map of their family.

    Args:
        model_class: Class of the teacher and its students.
        config: Config of the teacher; nothing is allocated for it.

    Returns:
        From an architecture to the number of parameters that a model of it has.
    """
    family = get_family(config).of(model_class)
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in model_class(config).named_parameters()}

    def count(architecture: Architecture) -> int:
        sizes = {
            "hidden": architecture.hidden_size,
            "head_units": architecture.hidden_size,
            "decoder_units": architecture.hidden_size,
            "heads": architecture.attention_size,
            "per_head": architecture.num_attention_heads,
            "ffn": architecture.intermediate_size,
        }
        total = 0
        for name, shape in shapes.items():
            layer = family.layer_of(name)
            if layer is None or layer <= architecture.num_hidden_layers:
                axes = family.parameter_axes(name)
                total += math.prod(sizes.get(axis, size) for axis, size in zip(axes, shape, strict=True))
        return total

    return count


def source_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """The teacher layer, from 1, that each student layer starts from.

    Source: AutoDistil's `floor(i * L / l)`, i from 0 (arXiv 2201.12507).
    """
    return [index * teacher_layers // student_layers + 1 for index in range(student_layers)]


def end_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """The teacher layer, from 1, whose output each student layer should come near.

    Source: the *uniform* layer map, round(i * L_T / L_S), halves rounded up (arXiv 2310.08797).
    """
    return [
        (2 * layer * teacher_layers + student_layers) // (2 * student_layers)
        for layer in range(1, student_layers + 1)
    ]


def unit_orders(model: PreTrainedModel, importance: Importance) -> dict[UnitGroup, Tensor]:
    """The order of each group's units, most important first.

    Heads are ordered as wholes, by the sum over their units, and units inside each head. Where layers
    share something per head (a position bias), heads are ordered alike in all of them, by the sum over
    the layers.
    """
    heads = Architecture.from_config(model.config).num_attention_heads
    by_head = {
        group: scores.view(heads, -1) for group, scores in importance.items() if group[0] in HEAD_GROUPS
    }
    totals = {group: scores.sum(1) for group, scores in by_head.items()}
    if get_family(model.config).shares_heads:
        totals = dict.fromkeys(totals, sum(totals.values(), torch.tensor(0.0)))
    orders = {}
    for group, scores in importance.items():
        if group in by_head:
            inside = by_head[group].argsort(dim=1, descending=True)
            start = torch.arange(heads, device=scores.device)[:, None] * inside.shape[1]
            orders[group] = (start + inside)[totals[group].argsort(descending=True)].flatten()
        else:
            orders[group] = scores.argsort(descending=True)
    return orders


@torch.no_grad()
def reorder_by_importance(model: PreTrainedModel, importance: Importance) -> None:
    """Permute residual units, heads, head units and neurons in place, the important ones first.

    The function of a model with a task head stays the same; an encoder's own outputs are permuted.
    Afterwards every smaller student is a prefix of this model.
    """
    family = get_family(model.config).of(type(model))
    orders = unit_orders(model, importance)
    for name, parameter in model.named_parameters():
        for dimension, group in unit_dimensions(family, name):
            if group in orders:
                order = orders[group].to(parameter.device)
                parameter.copy_(parameter.index_select(dimension, order))


def new_student(teacher: PreTrainedModel, architecture: Architecture) -> PreTrainedModel:
    """A stock model of the teacher's class with this shape and random weights, in training mode.

    It carries the teacher's labels, problem type, vocabulary and limits.
    """
    config = architecture.apply_to(teacher.config)
    config.name_or_path = ""  # the teacher's own, often a local path
    student = type(teacher)(config)
    student.train()
    return student


def move_to(model: nn.Module, device: torch.device) -> None:
    """Move a model in place (Transformers' own `to` hides its signature from type checkers)."""
    model.to(device)


@torch.no_grad()
def slice_student(teacher: PreTrainedModel, architecture: Architecture) -> PreTrainedModel:
    """Cut a student out of a teacher: the first units on every axis.

    Args:
        teacher: The wider model, as a rule after `reorder_by_importance`.
        architecture: The student's shape, no wider or deeper than the teacher's.

    Returns:
        A stock model of the teacher's class, in training mode.

    Raises:
        InvalidInput: If the student does not fit into the teacher.
    """
    require_fit(teacher, architecture)
    family = get_family(teacher.config).of(type(teacher))
    wide = Architecture.from_config(teacher.config)
    student = new_student(teacher, architecture)
    sources = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        source: Tensor = sources[source_name(family, name, wide, architecture)]
        for dimension, axis in enumerate(family.parameter_axes(name)):
            source = first_units(source, dimension, axis, wide, architecture, parameter.shape[dimension])
        parameter.copy_(source)
    rescale_queries(student, query_scale(wide, architecture))
    return student


def require_fit(teacher: PreTrainedModel, architecture: Architecture) -> None:
    """Refuse a student that is wider or deeper than its teacher.

    Raises:
        InvalidInput: Naming both shapes.
    """
    wide = Architecture.from_config(teacher.config)
    if not architecture.fits_into(wide):
        raise InvalidInput(
            "architecture",
            architecture.key,
            f"a student cut from this teacher is at most {wide.key}",
            "Choose a smaller student, or initialisation: random.",
        )


def source_name(family: Family, name: str, wide: Architecture, narrow: Architecture) -> str:
    """The teacher's parameter that a student's parameter starts from."""
    layer = family.layer_of(name)
    if layer is None:
        return name
    return family.at_layer(name, source_layers(wide.num_hidden_layers, narrow.num_hidden_layers)[layer - 1])


def first_units(
    source: Tensor, dimension: int, axis: Axis, wide: Architecture, narrow: Architecture, size: int
) -> Tensor:
    """The part of a teacher's parameter, along one dimension, that a student keeps: `size` units."""
    if axis == "heads":
        return source.index_select(dimension, head_rows(wide, narrow).to(source.device))
    if axis == "per_head":
        return source.index_select(dimension, source_heads(wide, narrow).to(source.device))
    return source.narrow(dimension, 0, size)


def keeps_heads(wide: Architecture, narrow: Architecture) -> bool:
    """Whether the student's heads are teacher heads, whole or cut; else units are regrouped."""
    return (
        narrow.num_attention_heads <= wide.num_attention_heads
        and narrow.attention_head_size <= wide.attention_head_size
    )


def head_rows(wide: Architecture, narrow: Architecture) -> Tensor:
    """Indices, on the teacher's `heads` axis, of the rows that the student keeps.

    The first units of the first heads; where the student's heads are larger or more than the
    teacher's, the first units of all, regrouped.
    """
    if not keeps_heads(wide, narrow):
        return torch.arange(narrow.attention_size)
    starts = torch.arange(narrow.num_attention_heads)[:, None] * wide.attention_head_size
    return (starts + torch.arange(narrow.attention_head_size)).flatten()


def source_heads(wide: Architecture, narrow: Architecture) -> Tensor:
    """The teacher head, from 0, that each of the student's heads has its first unit from."""
    return head_rows(wide, narrow)[:: narrow.attention_head_size] // wide.attention_head_size


def query_scale(wide: Architecture, narrow: Architecture) -> float:
    """Factor that keeps attention logits their size where heads shrink.

    Attention divides by sqrt(head size): fewer units per head would make the logits larger.
    """
    if not keeps_heads(wide, narrow):
        return 1.0
    return math.sqrt(narrow.attention_head_size / wide.attention_head_size)


@torch.no_grad()
def rescale_queries(student: PreTrainedModel, scale: float) -> None:
    """Multiply the query projections of all layers."""
    family = get_family(student.config)
    layers = Architecture.from_config(student.config).num_hidden_layers
    for layer in range(1, layers + 1):
        for parameter in family.module(student, family.projection(layer, "query")).parameters():
            parameter.mul_(scale)
