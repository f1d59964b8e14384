"""Which teacher layers a student layer learns from: a function of the two depths, or of a sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from hf_kdnas.errors import InvalidInput
from hf_kdnas.slicing import end_layers

Pair: TypeAlias = tuple[int, int]

KINDS = ("last", "uniform", "uniform+last", "uniform-consecutive")

# The map that is found on a sample of the data, where an objective offers it.
SEARCHED = "searched"

# Tokens that are enough to compare layers: their inner products take the square of them in memory.
SEARCH_TOKENS = 1024


def layer_pairs(
    kind: str | Iterable[Sequence[int]], teacher_layers: int, student_layers: int, key: str = "layers"
) -> list[Pair]:
    """The pairs (teacher layer, student layer) of a layer map.

    Layers count from 1; 0 stands for the output of the embeddings. The maps (arXiv 2310.08797), for a
    student layer i, teacher depth L_T and student depth L_S:

    - `last`: teacher layer L_T - L_S + i.
    - `uniform`: round(i * L_T / L_S), halves rounded up.
    - `uniform+last`: i * floor(L_T / L_S) and L_T - L_S + i (KD-NAS, arXiv 2303.09639).
    - `uniform-consecutive`: floor((i - 1) * L_T / L_S) .. ceil(i * L_T / L_S), so that every layer of the
      teacher contributes.

    Args:
        kind: One of these names, or the pairs themselves.
        teacher_layers: Depth of the teacher, L_T.
        student_layers: Depth of the student, L_S.
        key: The setting that asks for it.

    Returns:
        The pairs, sorted by student layer; a student layer may have several teacher layers.

    Raises:
        InvalidInput: If the name is unknown, a layer doesn't exist, or a map by name but
            `uniform-consecutive` is asked for a student deeper than its teacher.
    """
    if not isinstance(kind, str):
        return _explicit_pairs(kind, teacher_layers, student_layers, key)
    if kind not in KINDS:
        allowed = f"layer maps are {', '.join(KINDS)}, and searched for hidden states"
        raise InvalidInput(key, kind, allowed, "Choose one, or list pairs.")
    if student_layers > teacher_layers and kind != "uniform-consecutive":
        raise InvalidInput(
            key,
            kind,
            f"the student ({student_layers} layers) may be no deeper than the teacher ({teacher_layers})",
            "Choose a shallower student, uniform-consecutive, or list the pairs.",
        )
    students = range(1, student_layers + 1)
    return list(
        chain.from_iterable(
            ((layer, student) for layer in _sources(kind, student, teacher_layers, student_layers))
            for student in students
        )
    )


def searched_pairs(teacher: Mapping[int, Tensor], student: Mapping[int, Tensor]) -> list[Pair]:
    """The one-to-one map whose layers are most alike before any training, found by optimal assignment.

    Likeness is linear centred kernel alignment (Kornblith et al., arXiv 1905.00414, equation 1), which
    compares states of any width; the assignment maximises its sum.

    Args:
        teacher: Hidden states of each teacher layer over the same tokens, (tokens, H_T).
        student: Those of each student layer, (tokens, H_S); no more layers than the teacher's.

    Returns:
        As `layer_pairs`.
    """
    theirs, ours = (
        torch.stack([_similarities(states) for states in each.values()]) for each in (teacher, student)
    )
    # What is not finite is no reason to stop here: the loss of the first step will tell.
    rows, columns = linear_sum_assignment((ours @ theirs.T).nan_to_num(nan=0.0).cpu().numpy(), maximize=True)
    layers, students = list(teacher), list(student)
    return [(layers[column], students[row]) for row, column in zip(rows, columns, strict=True)]


def _similarities(states: Tensor) -> Tensor:
    """Inner products of centred states as one vector of length 1, (tokens^2,).

    The product of two such vectors is their alignment; each layer is looked at once, not once a pair.
    """
    # In double precision: neighbouring layers may differ in digits that single precision does not have.
    spread = states[:: -(-len(states) // SEARCH_TOKENS)].double()
    centred = spread - spread.mean(0)
    return functional.normalize((centred @ centred.T).flatten(), dim=0)


def _sources(kind: str, student: int, teacher_layers: int, student_layers: int) -> Iterable[int]:
    """Teacher layers of one student layer, without repeats, in ascending order."""
    last = teacher_layers - student_layers + student
    if kind == "last":
        return (last,)
    if kind == "uniform":
        return (end_layers(teacher_layers, student_layers)[student - 1],)
    if kind == "uniform+last":
        return sorted({student * (teacher_layers // student_layers), last})
    first = (student - 1) * teacher_layers // student_layers
    return range(first, -(-student * teacher_layers // student_layers) + 1)


def _explicit_pairs(
    pairs: Iterable[Sequence[int]], teacher_layers: int, student_layers: int, key: str
) -> list[Pair]:
    found: list[Pair] = []
    for pair in pairs:
        if len(pair) != 2:
            raise InvalidInput(
                key,
                list(pair),
                "a pair is [teacher layer, student layer]",
                "Write pairs of two numbers.",
            )
        teacher, student = pair
        if not (0 <= teacher <= teacher_layers and 0 <= student <= student_layers):
            raise InvalidInput(
                key,
                list(pair),
                f"the teacher has layers 0 to {teacher_layers}, the student 0 to {student_layers} "
                "(0 is the output of the embeddings)",
                "Name layers that exist, or choose a map by name.",
            )
        found.append((teacher, student))
    if not found:
        raise InvalidInput(key, [], "needs at least one pair", f"Add one, or name a map: {', '.join(KINDS)}.")
    return sorted(set(found), key=lambda pair: pair[::-1])
