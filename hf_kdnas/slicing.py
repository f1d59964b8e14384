"""Reorder a model so that its important units come first, and cut smaller students from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import Axis, get_family
from hf_kdnas.importance import Importance, UnitGroup, unit_dimensions

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

# Groups whose units are heads, or units inside heads.
HEAD_GROUPS = ("heads", "per_head")

# Which of a teacher's layers a shallower student starts from (see `source_layers`).
LAYER_CHOICES = ("alternate", "spread", "first", "last")


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
        tensors = [
            (family.layer_of(name), family.parameter_axes(name), tuple(each.shape))
            for name, each in model_class(config).named_parameters()
        ]

    def count(architecture: Architecture) -> int:
        sizes = {
            "hidden": architecture.hidden_size,
            "head_units": architecture.hidden_size,
            "decoder_units": architecture.hidden_size,
            "heads": architecture.attention_size,
            "per_head": architecture.num_attention_heads,
            "ffn": architecture.intermediate_size,
        }
        return sum(
            math.prod(sizes.get(axis, size) for axis, size in zip(axes, shape, strict=True))
            for layer, axes, shape in tensors
            if layer is None or layer <= architecture.num_hidden_layers
        )

    return count


def source_layers(teacher_layers: int, student_layers: int, choice: str = "alternate") -> list[int]:
    """The teacher layer, from 1, that each student layer starts from.

    Args:
        teacher_layers: Depth L of the teacher.
        student_layers: Depth l of the student, no more.
        choice: `alternate` is AutoDistil's `floor(i * L / l)`, i from 0 (arXiv 2201.12507); `spread` takes
            the first and the last layer and those evenly between; `first` and `last` take neighbours.

    Raises:
        InvalidInput: If the choice is unknown.
    """
    if choice not in LAYER_CHOICES:
        allowed = f"choices are {', '.join(LAYER_CHOICES)}"
        raise InvalidInput("layers", choice, allowed, "Choose one of these.")
    indices = range(student_layers)
    if choice == "spread" and student_layers > 1:
        last, steps = teacher_layers - 1, student_layers - 1
        return [(2 * index * last + steps) // (2 * steps) + 1 for index in indices]
    if choice in ("first", "last"):
        skipped = teacher_layers - student_layers if choice == "last" else 0
        return [skipped + index + 1 for index in indices]
    return [index * teacher_layers // student_layers + 1 for index in indices]


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


@dataclass(frozen=True)
class Part:
    """What one parameter of a smaller model is in a wider one: the first units along each dimension.

    Attributes:
        source: Name of the wider model's parameter.
        index: The units that are kept along each dimension.
        scale: What they are multiplied by.
    """

    source: str
    index: tuple[slice | Tensor, ...]
    scale: float = 1.0

    def of(self, whole: Tensor) -> Tensor:
        """The part of a whole parameter: a view where units are neighbours and unscaled, else a copy."""
        part = whole[self.index]
        return part if self.scale == 1.0 else part * self.scale

    def add_gradient(self, whole: Tensor, gradient: Tensor) -> None:
        """Add the gradient of the part to that of the whole, in place; a unit may be there more than once."""
        if self.scale != 1.0:
            gradient = gradient * self.scale
        kept = whole[tuple(slice(None) if isinstance(units, Tensor) else units for units in self.index)]
        for dimension, units in enumerate(self.index):
            if isinstance(units, Tensor):  # of one dimension at most: heads are not indexed by heads
                kept.index_add_(dimension, units, gradient)
                return
        kept += gradient


def parts_of(
    teacher: PreTrainedModel, student: PreTrainedModel, layers: str = "alternate"
) -> dict[str, Part]:
    """What a student's parameters are in a wider model.

    Args:
        teacher: The wider model.
        student: A model of the same class, no wider or deeper; it may be on the meta device.
        layers: Which layers it starts from (see `source_layers`).

    Returns:
        The part for each name of the student's parameters, its indices on the teacher's device.
    """
    family = get_family(teacher.config).of(type(teacher))
    wide, narrow = Architecture.from_config(teacher.config), Architecture.from_config(student.config)
    chosen = source_layers(wide.num_hidden_layers, narrow.num_hidden_layers, layers)
    scale, query = query_scale(wide, narrow), f".{family.projections['query']}."
    parts = {}
    for name, parameter in student.named_parameters():
        layer = family.layer_of(name)
        source = name if layer is None else family.at_layer(name, chosen[layer - 1])
        index = tuple(
            _kept_units(axis, wide, narrow, size, teacher.device)
            for axis, size in zip(family.parameter_axes(name), parameter.shape, strict=True)
        )
        parts[name] = Part(source, index, scale if query in f".{name}" else 1.0)
    return parts


def _kept_units(
    axis: Axis, wide: Architecture, narrow: Architecture, size: int, device: torch.device
) -> slice | Tensor:
    """The units that a student keeps along a dimension; a slice where they are the first ones."""
    if axis in ("heads", "per_head"):
        units = head_rows(wide, narrow) if axis == "heads" else source_heads(wide, narrow)
        if not torch.equal(units, torch.arange(size)):
            return units.to(device)
    return slice(size)


@torch.no_grad()
def slice_student(
    teacher: PreTrainedModel, architecture: Architecture, layers: str = "alternate"
) -> PreTrainedModel:
    """Cut a student out of a teacher: the first units on every axis.

    Args:
        teacher: The wider model, as a rule after `reorder_by_importance`.
        architecture: The student's shape, no wider or deeper than the teacher's.
        layers: Which layers it starts from (see `source_layers`).

    Returns:
        A stock model of the teacher's class, in training mode.

    Raises:
        InvalidInput: If the student does not fit into the teacher.
    """
    require_fit(teacher, architecture)
    student = new_student(teacher, architecture)
    parts, sources = parts_of(teacher, student, layers), dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        parameter.copy_(parts[name].of(sources[parts[name].source]))
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
