"""The shape that a student is narrowed to."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KEY = "homotopic.target"


def resolve_target(target: str | float, config: PretrainedConfig) -> Architecture:
    """The shape that a recipe's `homotopic.target` means for a teacher.

    Of a fraction of the teacher's widths the hidden size is rounded to what the teacher's number of heads
    divides, because no stock config holds another, and the neurons keep their proportion to it (ours: the
    paper removes the same part of the columns of every matrix).

    Args:
        target: A fraction, or a key such as `6L-192H-768F-12A-gelu`.
        config: The teacher's config.

    Raises:
        InvalidInput: If it is neither, no stock config holds it, or it can't be had by removing units, heads
            and layers of the teacher; the message names the nearest shape that can.
    """
    require_stock_heads(config)
    teacher, part = Architecture.from_config(config), _fraction(target)
    if part is not None:
        shape = _nearest(replace(teacher, intermediate_size=1), part * teacher.hidden_size, config)
        neurons = round(teacher.intermediate_size * shape.hidden_size / teacher.hidden_size)
        return replace(shape, intermediate_size=max(1, neurons))
    shape = _parsed(str(target), config)
    require_part_of(KEY, shape, config)
    return shape


def require_stock_heads(config: PretrainedConfig) -> None:
    """Refuse a teacher of the exact type.

    Raises:
        InvalidInput: If its heads have a size of their own.
    """
    teacher = Architecture.from_config(config)
    if teacher.head_size is not None:
        raise InvalidInput(
            "teacher.model",
            teacher.key,
            "teachers are narrowed whose heads share the hidden size, as in a stock config",
            "Choose such a teacher, or don't narrow: kdnas distill, search.finalise: distill.",
        )


def require_part_of(key: str, shape: Architecture, config: PretrainedConfig) -> None:
    """Refuse a shape that is not left when units, heads and layers of a teacher are removed.

    Args:
        key: The setting that asks for it.
        shape: The shape.
        config: The teacher's config.

    Raises:
        InvalidInput: Naming the nearest that is.
    """
    if not is_part_of(shape, config):
        teacher, nearest = Architecture.from_config(config), _nearest(shape, shape.hidden_size, config)
        raise InvalidInput(
            key,
            shape.key,
            f"units, heads and layers of the teacher, {teacher.key}, can only be removed",
            f"The nearest that is left then is {nearest.key}.",
        )


def is_part_of(shape: Architecture, config: PretrainedConfig) -> bool:
    """Whether a shape is left when units, heads and layers of a teacher are removed.

    Args:
        shape: The shape.
        config: The teacher's config.
    """
    return shape == _nearest(shape, shape.hidden_size, config)


def _fraction(target: str | float) -> float | None:
    """The part of the teacher's widths, or None where the target is a key."""
    try:
        part = float(target)
    except ValueError:
        return None
    if not 0 < part <= 1:
        raise InvalidInput(KEY, target, "a part must be above 0 and at most 1", "Try 0.5.")
    return part


def _parsed(key: str, config: PretrainedConfig) -> Architecture:
    """The shape of a key; whether the teacher is large enough for it is not looked at."""
    try:
        shape = Architecture.parse(key)
        shape.apply_to(config)
    except InvalidInput as error:
        remedy = "Write one of these."
        sizes = re.fullmatch(r"(\d+)L-(\d+)H-(\d+)F-(\d+)A-(\w+)", key)
        if sizes is not None:
            layers, hidden, neurons, heads = (max(1, int(size)) for size in sizes.groups()[:4])
            asked = Architecture(layers, heads, heads, neurons)
            remedy = f"The nearest that one holds is {_nearest(asked, hidden, config).key}."
        raise InvalidInput(
            KEY,
            key,
            "must be a part of the teacher's widths, such as 0.5, or the key of a shape that a stock config "
            "of the teacher's type holds, such as 6L-192H-768F-12A-gelu",
            remedy,
        ) from error
    return shape


def _nearest(asked: Architecture, hidden: float, config: PretrainedConfig) -> Architecture:
    """The shape nearest to one of this hidden size that is left when parts of the teacher are removed.

    Heads are at most as many and as large as the teacher's; where they would be larger, there are more.
    """
    teacher = Architecture.from_config(config)
    hidden, largest = min(hidden, teacher.hidden_size), teacher.attention_head_size
    heads = max(min(asked.num_attention_heads, teacher.num_attention_heads), math.ceil(hidden / largest))
    size = max(1, min(largest, round(hidden / heads)))
    if not get_family(config).allows_width(config, heads * size):
        size += 1 if size == 1 else -1
    return Architecture(
        min(asked.num_hidden_layers, teacher.num_hidden_layers),
        heads * size,
        heads,
        min(asked.intermediate_size, teacher.intermediate_size),
        teacher.hidden_act,
    )
