"""Hand-crafted shapes that every search is compared with."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_kdnas.architecture import Architecture

EVERY_SECOND_LAYER = "every-second-layer"

# The published students' shapes; their activation is that of the teacher they are cut from.
PUBLISHED = {
    "distilbert": "6L-768H-3072F-12A-gelu",
    "tinybert": "4L-312H-1200F-12A-gelu",
    "minilm-6": "6L-384H-1536F-12A-gelu",
    "minilm-3": "3L-384H-1536F-12A-gelu",
}

BASELINES = (EVERY_SECOND_LAYER, *PUBLISHED)


def baseline_architecture(name: str, teacher: Architecture) -> Architecture:
    """The shape of a baseline.

    Args:
        name: `every-second-layer` (the teacher with half its layers, rounded up), one of the
            published students in `PUBLISHED`, or a key such as `4L-312H-1200F-12A-gelu`.
        teacher: The shape it is compared within; gives the activation of the named ones.

    Raises:
        InvalidInput: If the name is neither.
    """
    from hf_kdnas.architecture import Architecture

    if name == EVERY_SECOND_LAYER:
        return dataclasses.replace(teacher, num_hidden_layers=(teacher.num_hidden_layers + 1) // 2)
    if name in PUBLISHED:
        return dataclasses.replace(Architecture.parse(PUBLISHED[name]), hidden_act=teacher.hidden_act)
    return Architecture.parse(name)
