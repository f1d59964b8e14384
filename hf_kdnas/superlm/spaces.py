"""What all members of a space have to agree on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from hf_kdnas.errors import InvalidInput

if TYPE_CHECKING:
    from hf_kdnas.architecture import Architecture

# Most relation heads where the user names none. AutoDistil's 12 divide almost none of its own widths; 16
# divide all of them, 384 and 768.
RELATION_HEADS = 16


def relation_heads(space: Iterable[Architecture], teacher: Architecture) -> int:
    """The number of relation heads with which the losses of all members can be compared.

    The largest number up to 16 that divides the attention width of the teacher and of every member.

    Args:
        space: The members.
        teacher: Shape of the teacher.
    """
    common = math.gcd(*_attention_widths(space, teacher))
    return max(heads for heads in range(1, RELATION_HEADS + 1) if common % heads == 0)


def check_relation_heads(heads: int, space: Iterable[Architecture], teacher: Architecture) -> None:
    """Refuse a number of relation heads that doesn't suit the teacher and every member.

    Raises:
        InvalidInput: Naming an attention width that it doesn't divide, and the numbers that are possible.
    """
    widths = _attention_widths(space, teacher)
    wrong = [width for width in widths if not isinstance(heads, int) or heads < 1 or width % heads]
    if wrong:
        common = math.gcd(*widths)
        allowed = [str(each) for each in range(1, common + 1) if common % each == 0]
        raise InvalidInput(
            "superlm.relation_heads",
            heads,
            "must divide the attention width of the teacher and of every member, and does not divide "
            f"{wrong[0]}; allowed are {', '.join(allowed)}",
            "Choose one of these, or leave it out.",
        )


def _attention_widths(space: Iterable[Architecture], teacher: Architecture) -> list[int]:
    return sorted({teacher.attention_size, *(member.attention_size for member in space)})
