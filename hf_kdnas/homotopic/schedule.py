"""When a student is narrowed, and to which shapes on the way."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Segment:
    """The steps between two compactions.

    Attributes:
        start: Steps behind it.
        end: Steps behind its last one; there the student is cut to the next segment's shape.
        shape: The student's shape.
    """

    start: int
    end: int
    shape: Architecture


def pruned_part(step: float, start: float, end: float) -> float:
    """How much of all that is to be removed is removed by a step, from 0 to 1.

    The kept fraction is `r(t) = 1 - (1 - r_f) pruned_part(t)`: 1 up to t_i, then
    `r_f + (1 - r_f) (1 - (t - t_i) / (t_f - t_i))^3`, and r_f from t_f on (HomoDistil, arXiv 2302.09632).

    Args:
        step: t.
        start: t_i.
        end: t_f.
    """
    if step <= start:
        return 0.0
    return 1.0 - (1.0 - min(1.0, (step - start) / (end - start))) ** 3


def compaction_steps(start: int, end: int, count: int) -> list[int]:
    """The steps at which the cubic schedule has removed 1, 2 ... `count` parts of equal size.

    Ours: at even distances in steps the first of 8 compactions would remove a third of all units at once.

    Args:
        start: t_i.
        end: t_f.
        count: Number of compactions.

    Returns:
        The steps, ascending; early ones that fall on one step are one.
    """
    parts = (1.0 - (1.0 - number / count) ** (1 / 3) for number in range(1, count + 1))
    return sorted({start + max(1, round(part * (end - start))) for part in parts})


def plan_segments(
    config: PretrainedConfig,
    target: Architecture,
    steps: int,
    *,
    start: float = 0.0,
    end: float = 0.7,
    compactions: int = 8,
) -> list[Segment]:
    """The segments of a training, from the teacher's widths to the target.

    Layers that the target does without are left out from the first step on (ours: the paper keeps the depth).

    Args:
        config: The teacher's config.
        target: The shape at the end.
        steps: Optimiser steps of the whole training.
        start: t_i, as a part of the steps.
        end: t_f, likewise.
        compactions: How often the student is cut.

    Raises:
        InvalidInput: If the steps are too few for cuts at different ones, or none are left behind t_f.
    """
    if not start < end < 1:
        raise InvalidInput(
            "homotopic.end",
            end,
            f"must be behind homotopic.start, {start}, and leave some of the training behind it",
            "Try 0.7.",
        )
    first, last = round(start * steps), min(round(end * steps), steps - 1)
    cuts = compaction_steps(first, last, compactions)
    if last <= first or len(cuts) < compactions:
        raise InvalidInput(
            "homotopic.compactions",
            compactions,
            f"the training has {max(0, last - first)} steps from homotopic.start to homotopic.end, where "
            "early cuts lie close together: some would fall on one step",
            "Ask for fewer, or train for more steps: more epochs or rows, or max_steps where it is set.",
        )
    teacher = Architecture.from_config(config)
    shape = _shape(target, teacher.hidden_size, teacher.num_attention_heads, teacher.intermediate_size)
    bounds = [0, *cuts, steps]
    segments: list[Segment] = []
    for begin, until in pairwise(bounds):
        shape = _shape_on_the_way(shape, target, config, pruned_part(begin, first, last))
        if segments and segments[-1].shape == shape:  # nothing to remove: too small a difference
            segments[-1] = Segment(segments[-1].start, until, shape)
        else:
            segments.append(Segment(begin, until, shape))
    return segments


def _shape_on_the_way(
    current: Architecture, target: Architecture, config: PretrainedConfig, part: float
) -> Architecture:
    """The shape when a part of all that is to be removed is removed.

    Ours: a stock config holds head size = hidden size / heads. Of the numbers and sizes of heads between the
    current ones and the target's, those are taken whose product is nearest to the hidden size that the
    schedule asks for; of several such, those whose number is.
    """
    if part == 1:
        return target
    teacher, allows = Architecture.from_config(config), get_family(config).allows_width

    def due(name: str) -> float:
        wide, narrow = getattr(teacher, name), getattr(target, name)
        return float(wide - part * (wide - narrow))

    numbers = range(target.num_attention_heads, current.num_attention_heads + 1)
    sizes = range(target.attention_head_size, current.attention_head_size + 1)
    hidden, heads = due("hidden_size"), due("num_attention_heads")
    number, size = min(
        ((number, size) for number, size in product(numbers, sizes) if allows(config, number * size)),
        key=lambda each: (abs(each[0] * each[1] - hidden), abs(each[0] - heads)),
    )
    neurons = min(current.intermediate_size, round(due("intermediate_size")))
    return _shape(target, number * size, number, neurons)


def _shape(target: Architecture, hidden: int, heads: int, neurons: int) -> Architecture:
    return Architecture(target.num_hidden_layers, hidden, heads, neurons, target.hidden_act)
