"""The loss of a space's members: the same objectives for all of them, made for each shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.layer_maps import SEARCHED
from hf_kdnas.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

    from hf_kdnas.architecture import Architecture


class MemberLosses:
    """A criterion for each member of a space.

    Nothing is learned in them: a map that is learned for one member would be of no use to the others, and
    their losses could not be compared.

    Attributes:
        teacher_signals: Names of the signals that the teacher has to give, for whichever member.
        progress: The part of the training that is behind, from 0 to 1, for weights that change.

    Args:
        objectives: As in a recipe.
        teacher: Shape of the teacher.
        members: Shapes that will be asked for.
        projection: The map from teacher to student states, (H_T, H_T), whose first columns are a narrower
            member's; None where there is none.
        device: Where the losses are computed.

    Raises:
        InvalidInput: If an objective would learn a map, or doesn't fit to a member.
    """

    def __init__(
        self,
        objectives: Mapping[str, Mapping[str, Any]],
        teacher: Architecture,
        members: Iterable[Architecture],
        *,
        projection: Tensor | None,
        device: torch.device,
    ) -> None:
        self._objectives = objectives
        self._teacher = teacher
        self._projection = projection
        self._device = device
        self._made: dict[Architecture, DistillationCriterion] = {}
        self._sample: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None
        self.progress = 0.0
        names: set[str] = set()
        for member in {each.num_hidden_layers: each for each in members}.values():
            names |= self._make(member).teacher_signals
        self.teacher_signals = frozenset(names)

    def calibrate(self, signals: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Fix the criteria's constants by this sample of the teacher's signals, also of those made later."""
        self._sample = (signals, batch)
        self._made.clear()

    def __getitem__(self, member: Architecture) -> DistillationCriterion:
        """The criterion of a member."""
        if member not in self._made:
            criterion = self._make(member).to(self._device)
            if self._sample is not None:
                criterion.calibrate({}, *self._sample)
            self._made[member] = criterion
        self._made[member].progress = self.progress
        return self._made[member]

    def _make(self, member: Architecture) -> DistillationCriterion:
        projection = None if self._projection is None else self._projection[:, : member.hidden_size]
        criterion = DistillationCriterion(self._objectives, member, self._teacher, projection=projection)
        # `objectives.NAME.PARAMETER`, and the layer map that is found anew for each shape.
        learned = {name.split(".")[1] for name, _ in criterion.named_parameters()}
        learned |= {name for name, options in self._objectives.items() if _searches(options)}
        if learned:
            raise InvalidInput(
                "superlm.objectives",
                ", ".join(sorted(learned)),
                "no map can be learned or searched: members share all that they learn",
                "Choose relations, or hidden with a layer map by name and initialisation: project or slice.",
            )
        return criterion


def _searches(options: Mapping[str, Any] | None) -> bool:
    return (options or {}).get("layers") == SEARCHED
