"""All members of all spaces, ranked by their held-out loss; the best under a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.pareto import pareto_front
from hf_kdnas.run import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import PartialState

    from hf_kdnas.progress import Narrator
    from hf_kdnas.space import SearchSpace
    from hf_kdnas.superlm.held_out import HeldOut
    from hf_kdnas.superlm.model import SuperLM


# Members that go through the text together: the more, the less the teacher's part of a loss weighs in each;
# a rank that dies loses no more than these.
TOGETHER = 16


@dataclass(frozen=True)
class Member:
    """A member of a space, and what it costs.

    Attributes:
        space: Name of its space.
        architecture: Its shape.
        loss: On held-out text, in its SuperLM.
        parameters: Numbers in its weights.
        flops: Multiply-adds of its layers for one window.
    """

    space: str
    architecture: Architecture
    loss: float
    parameters: int
    flops: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "architecture": self.architecture.key}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Member:
        """Back from JSON."""
        return cls(**{**values, "architecture": Architecture.parse(values["architecture"])})


# What a member costs, known without measuring it.
COSTS = ("parameters", "flops")


def within(members: Sequence[Member], *, parameters: int | None, flops: int | None) -> list[Member]:
    """The members that cost no more than this, by loss, the best first.

    Args:
        members: Any members.
        parameters: Most parameters, or None.
        flops: Most multiply-adds, or None.

    Raises:
        InvalidInput: If there is none: says what the smallest costs.
    """
    fitting = sorted(members, key=lambda member: (member.loss, member.parameters))
    for name, limit in zip(COSTS, (parameters, flops), strict=True):
        if limit is None:
            continue
        smallest = min(fitting, key=lambda member: getattr(member, name))
        fitting = [member for member in fitting if getattr(member, name) <= limit]
        if not fitting:
            raise InvalidInput(
                name,
                limit,
                f"the smallest member, {smallest.architecture.key}, has {getattr(smallest, name)}",
                "Ask for more, or train a space of smaller members.",
            )
    return fitting


def best_by(cost: str, members: Sequence[Member]) -> list[Member]:
    """The Pareto front of loss and a cost, from the cheapest to the best.

    Args:
        cost: One of COSTS.
        members: Any members.
    """
    return pareto_front(members, lambda member: (-member.loss, getattr(member, cost)))


def rank_space(
    name: str,
    space: SearchSpace,
    superlm: SuperLM,
    held_out: HeldOut,
    folder: Path,
    *,
    parameters: Callable[[Architecture], int],
    length: int,
    processes: PartialState,
    narrator: Narrator,
) -> list[Member]:
    """The held-out loss of every member, spread over the ranks; kept as soon as it is known.

    Args:
        name: The space's.
        space: Its members.
        superlm: Its trained weights.
        held_out: The text, with the teacher's signals.
        folder: Keeps what each rank found; another one for other weights or text.
        parameters: Counts a member's parameters.
        length: Tokens of a window, for FLOPs.
        processes: The ranks.
        narrator: Tells how it goes on.

    Returns:
        The members by loss, the best first, on every rank.

    Raises:
        InvalidInput: If a loss is not finite.
    """
    mine = list(space)[processes.process_index :: processes.num_processes]
    kept, losses = folder / f"losses-{processes.process_index}.json", _known(folder)
    missing = [member for member in mine if member.key not in losses]
    done = len(mine) - len(missing)
    with narrator.loop(f"ranking {name}", len(mine), done) as progress:
        for start in range(0, len(missing), TOGETHER):
            group = missing[start : start + TOGETHER]
            found = held_out.mean_losses(superlm, group)
            losses |= {member.key: loss for member, loss in zip(group, found, strict=True)}
            write_json(kept, losses)
            progress(done + start + len(group), "")
    processes.wait_for_everyone()
    losses = _known(folder)
    for key, loss in losses.items():
        if not math.isfinite(loss):
            raise InvalidInput(
                f"superlm.spaces.{name}",
                f"a held-out loss of {key} that is not finite",
                "there is no order of such members",
                "Train again with a lower learning rate, or in fp32.",
            )
    members = [
        Member(name, member, losses[member.key], parameters(member), member.flops(length)) for member in space
    ]
    return sorted(members, key=lambda member: (member.loss, member.parameters))


def _known(folder: Path) -> dict[str, float]:
    """What any rank of this launch or an earlier one found."""
    found: dict[str, float] = {}
    for file in sorted(folder.glob("losses-*.json")):
        found |= read_json(file)
    return found
