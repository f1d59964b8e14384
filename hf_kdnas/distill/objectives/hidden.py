"""Hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.layer_maps import SEARCHED, layer_pairs, searched_pairs
from hf_kdnas.distill.objectives.base import Batch, Objective, Signals, count_tokens, sum_over_tokens
from hf_kdnas.errors import InvalidInput
from hf_kdnas.importance import UnitGroup

KEY = "objectives.hidden.layers"


class HiddenStates(Objective):
    """Mean squared error between hidden states, through a learned or a fixed map.

    Learned (arXiv 2310.08797; KD-NAS, arXiv 2303.09639): one linear map per student layer, H_S -> n *
    H_T, against the states of its n teacher layers side by side; the error is a mean over features, so
    that each teacher layer counts alike.

    Fixed, where a `projection` P (H_T, H_S) is given: the teacher's states times P against the
    student's, divided by the variance of the projected states; there is nothing to learn. That variance
    belongs to the teacher layer and is fixed once, by `calibrate` or by the first batch.

    The layer map may also be `searched`: one teacher layer for each student layer, those that are most
    alike on a sample before the training (see `searched_pairs`). It is found once, and is part of the
    state, so that a resumed run keeps to it.

    The value per token is the mean over the student's layers. Units: tokens.

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher.
        layers: Layer map: `last`, `uniform`, `uniform+last`, `uniform-consecutive` (see `layer_pairs`),
            `searched`, or pairs [teacher layer, student layer].
        projection: The fixed map P, (H_T, H_S), or None to learn maps.
        learned: Learn maps also where there is a projection; they begin as it.

    Raises:
        InvalidInput: If a layer doesn't exist or the projection's shape doesn't fit.
    """

    projection: Tensor | None
    variance: Tensor
    found: Tensor | None

    def __init__(
        self,
        student: Architecture,
        teacher: Architecture,
        *,
        layers: str | Sequence[Sequence[int]] = "uniform",
        projection: Tensor | None = None,
        learned: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        if projection is not None:
            _check_projection(projection, student, teacher)
        beginning, projection = projection, None if learned else projection
        self.searched = layers == SEARCHED
        self.sources = _candidates(student, teacher) if self.searched else _sources(student, teacher, layers)
        self.used = sorted({source for sources in self.sources.values() for source in sources})
        self.student_signals = frozenset(f"hidden.{layer}" for layer in self.sources)
        self.teacher_signals = frozenset(f"hidden.{source}" for source in self.used)
        if projection is None:
            self.maps = nn.ModuleDict(
                {
                    str(layer): nn.Linear(
                        student.hidden_size, (1 if self.searched else len(sources)) * teacher.hidden_size
                    )
                    for layer, sources in self.sources.items()
                }
            )
            if beginning is not None:
                self._begin_as(beginning)
        # The teacher layer of each student layer, 0 until it is found.
        found = torch.zeros(student.num_hidden_layers, dtype=torch.long) if self.searched else None
        self.register_buffer("found", found)
        # Neither of these is saved: the caller gives the projection again, and calibrates again.
        self.register_buffer("projection", projection, persistent=False)
        self.register_buffer("variance", torch.ones(len(self.used)), persistent=False)
        self.calibrated = projection is None and not self.searched
        # The student was cut from the first residual units: a slice does, without a matrix product.
        self.cut = projection is not None and torch.equal(
            projection, torch.eye(*projection.shape).to(projection)
        )

    def count(self, batch: Batch) -> Tensor:
        """Tokens."""
        return count_tokens(batch)

    def calibrate(self, student: Signals, teacher: Signals, batch: Batch) -> None:
        """Fix the searched layer map, and the variance of each projected teacher layer, over this sample."""
        kept = batch["attention_mask"].bool()
        if self.projection is not None:
            for position, source in enumerate(self.used):
                if f"hidden.{source}" in teacher:
                    states = teacher[f"hidden.{source}"][kept].to(self.projection.dtype)
                    self.variance[position] = self._projected(states).var()
        if self.found is not None and not self.found.any():
            theirs = {source: teacher[f"hidden.{source}"][kept] for source in self.used}
            ours = {layer: student[f"hidden.{layer}"][kept] for layer in self.sources}
            self.found.copy_(torch.tensor([source for source, _ in searched_pairs(theirs, ours)]))
            self._use(self.found)
        self.calibrated = True

    def begin_as_copy(self) -> None:
        """Set each learned map to the identity, once for each of its teacher layers."""
        if self.projection is None:
            self._begin_as(torch.eye(self.teacher.hidden_size))

    @torch.no_grad()
    def _begin_as(self, projection: Tensor) -> None:
        """Set each learned map to what undoes a projection, once for each of its teacher layers."""
        for learned in self.maps.values():
            weight, bias = (cast("Tensor", getattr(learned, name)) for name in ("weight", "bias"))
            weight.copy_(projection.repeat(len(weight) // len(projection), 1))
            bias.zero_()

    def student_units(self, name: str) -> tuple[UnitGroup | None, ...]:
        """Maps read residual units."""
        return (None, ("hidden", None)) if name.endswith(".weight") else ()

    def _use(self, found: Tensor) -> None:
        """Learn from these teacher layers, and read no others from now on."""
        self.sources = {layer: [source] for layer, source in enumerate(found.tolist(), start=1)}
        self.teacher_signals = frozenset(f"hidden.{source}" for source in found.tolist())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.found is not None and self.found.any():
            self._use(self.found)

    def _projected(self, states: Tensor) -> Tensor:
        projection = cast("Tensor", self.projection)
        if self.cut:
            return states[..., : projection.shape[1]]
        return states.to(projection.dtype) @ projection

    def total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Sum over the tokens."""
        if not self.calibrated:
            with torch.no_grad():
                self.calibrate(student, teacher, batch)
        error = self._learned_error if self.projection is None else self._projected_error
        return sum_over_tokens(error(student, teacher), batch) / len(self.sources)

    def _learned_error(self, student: Signals, teacher: Signals) -> Tensor:
        """Error per token, (batch, length), summed over the student's layers."""
        errors = []
        for layer, sources in self.sources.items():
            wanted = torch.cat([teacher[f"hidden.{source}"] for source in sources], dim=-1)
            mapped = self.mapped(self.maps[str(layer)], student[f"hidden.{layer}"])
            errors.append((mapped - wanted).square().mean(-1))
        return torch.stack(errors).sum(0)

    def _projected_error(self, student: Signals, teacher: Signals) -> Tensor:
        """The same against projected teacher states, relative to their variance."""
        wanted = sorted({source for sources in self.sources.values() for source in sources})
        projected = {source: self._projected(teacher[f"hidden.{source}"]) for source in wanted}
        variance = dict(zip(self.used, self.variance, strict=True))
        errors = []
        for layer, sources in self.sources.items():
            for source in sources:
                error = (student[f"hidden.{layer}"] - projected[source]).square().mean(-1)
                errors.append(error / (variance[source] * len(sources)))
        return torch.stack(errors).sum(0)


def _sources(
    student: Architecture, teacher: Architecture, layers: str | Sequence[Sequence[int]]
) -> dict[int, list[int]]:
    """Teacher layers of each student layer."""
    found: dict[int, list[int]] = {}
    for source, layer in layer_pairs(layers, teacher.num_hidden_layers, student.num_hidden_layers, KEY):
        found.setdefault(layer, []).append(source)
    return found


def _candidates(student: Architecture, teacher: Architecture) -> dict[int, list[int]]:
    """All teacher layers for each student layer, of which the search leaves one."""
    depth = teacher.num_hidden_layers
    if student.num_hidden_layers > depth:
        raise InvalidInput(
            KEY,
            SEARCHED,
            f"the student ({student.num_hidden_layers} layers) may be no deeper than the teacher ({depth})",
            "Choose a shallower student, or list the pairs.",
        )
    return {layer: list(range(1, depth + 1)) for layer in range(1, student.num_hidden_layers + 1)}


def _check_projection(projection: Tensor, student: Architecture, teacher: Architecture) -> None:
    wanted = (teacher.hidden_size, student.hidden_size)
    if tuple(projection.shape) != wanted:
        raise InvalidInput(
            "projection",
            tuple(projection.shape),
            f"must be {wanted}, the teacher's hidden size by the student's",
            "Give the projection that belongs to this student.",
        )
