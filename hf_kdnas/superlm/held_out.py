"""What members are ranked by: their loss on held-out text, against signals that the teacher gave once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.distill.objectives import SharedSignals
from hf_kdnas.precision import autocast

if TYPE_CHECKING:
    from hf_kdnas.architecture import Architecture
    from hf_kdnas.distill.signals import TeacherSignals
    from hf_kdnas.superlm.losses import MemberLosses
    from hf_kdnas.superlm.model import SuperLM
    from hf_kdnas.superlm.texts import Window


@dataclass(frozen=True)
class HeldOut:
    """Held-out windows, and what the teacher says about them.

    Attributes:
        windows: The windows.
        signals: The teacher's signals on them, in their order.
        losses: What is computed from these signals.
        batch_size: Windows in a batch.
        precision: Arithmetic of the members, as in a recipe.
        device: Where they run.
    """

    windows: list[Window]
    signals: TeacherSignals
    losses: MemberLosses
    batch_size: int
    precision: str
    device: torch.device

    def batches(self) -> Iterator[dict[str, Any]]:
        """All windows, with the teacher's signals under "teacher"."""
        for start in range(0, len(self.windows), self.batch_size):
            chosen = self.windows[start : start + self.batch_size]
            ids = torch.tensor(chosen, device=self.device)
            signals = self.signals.collate(range(start, start + len(chosen)), ids.shape[1])
            yield {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "teacher": {name: each.to(self.device) for name, each in signals.items()},
            }

    def mean_losses(self, superlm: SuperLM, members: Sequence[Architecture]) -> list[float]:
        """Each member's loss, a mean over all windows.

        All members see a batch before the next one comes: what their losses need of the teacher alone is made
        once. A member's forward ends with the last signal that its loss needs.
        """
        criteria = [self.losses[member] for member in members]
        subnets = [superlm.subnet(member) for member in members]
        captures = [
            Capture(subnet.skeleton, criterion.student_signals, only=True)
            for subnet, criterion in zip(subnets, criteria, strict=True)
        ]
        totals = torch.zeros(len(members), device=self.device)
        with ExitStack() as weights:
            for subnet in subnets:
                weights.enter_context(subnet.evaluating())
            for batch in self.batches():
                teacher, size = SharedSignals(batch["teacher"], batch), len(batch["input_ids"])
                for place, criterion in enumerate(criteria):
                    with autocast(self.device, self.precision):
                        signals = forward_signals(subnets[place], captures[place], batch)
                    totals[place] += criterion(signals, teacher, batch, criterion.counts(batch))[0] * size
        found: list[float] = (totals / len(self.windows)).tolist()
        return found
