"""Train a SuperLM: every step is about its largest member, its smallest one and some at random."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import reduce
from torch.optim import AdamW

from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.errors import InvalidInput
from hf_kdnas.precision import autocast
from hf_kdnas.superlm.checkpoint import Checkpoint
from hf_kdnas.superlm.sandwich import extremes, sandwich

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import PartialState
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_kdnas.architecture import Architecture
    from hf_kdnas.progress import Narrator
    from hf_kdnas.recipe_superlm import SuperLMTrainingSection
    from hf_kdnas.space import SearchSpace
    from hf_kdnas.superlm.held_out import HeldOut
    from hf_kdnas.superlm.losses import MemberLosses
    from hf_kdnas.superlm.model import SuperLM
    from hf_kdnas.superlm.texts import TextWindows, Window
    from hf_kdnas.tasks.masking import Masking

# What the losses of a step's members are told apart by; whatever is drawn comes after the two extremes.
SIZES = ("largest", "smallest", "random")

# Steps left out in a row after which a training stops all the same: it won't recover by itself.
MOST_LEFT_OUT = 10


@dataclass(frozen=True)
class SuperLMTrainer:
    """Trains the shared weights of a space in place, on all ranks of a launch.

    A step's gradient is the sum over its members of the gradient on the joined batch of all micro-batches and
    ranks. Members are trained one after the other, so that memory is that of the largest and one more copy of
    the gradients.

    Attributes:
        superlm: The shared weights, on the device.
        space: The members.
        parameters: Counts a member's parameters, for the extremes.
        teacher: The teacher, frozen, on the device.
        teacher_precision: What it computes in.
        losses: The members' losses.
        windows: The text.
        masking: Hides tokens, where an objective is about them.
        held_out: Text to follow the training on.
        section: How long and how fast.
        seed: Decides members, dropout and hidden tokens.
        checkpoint: Where the training goes on.
        processes: The ranks.
        narrator: Tells how it goes on.
    """

    superlm: SuperLM
    space: SearchSpace
    parameters: Callable[[Architecture], int]
    teacher: PreTrainedModel
    teacher_precision: str
    losses: MemberLosses
    windows: TextWindows
    masking: Masking | None
    held_out: HeldOut
    section: SuperLMTrainingSection
    seed: int
    checkpoint: Checkpoint
    processes: PartialState
    narrator: Narrator

    def run(self, what: str) -> list[dict[str, Any]]:
        """Train to the last step, going on from the checkpoint.

        Args:
            what: Names the space where progress is told.

        Returns:
            The mean training loss of each size since the last record, and the held-out loss of the largest,
            the middle and the smallest member, every `evaluation_steps`.

        Raises:
            InvalidInput: If a loss or a gradient is not finite, and steps with such are not to be skipped, or
                have been for too long.
        """
        section, model = self.section, self.superlm.model
        optimiser = AdamW(
            model.parameters(), lr=section.learning_rate, weight_decay=section.weight_decay, fused=True
        )
        state = self.checkpoint.load(model, optimiser)
        if state is None:
            state = {"step": 0, "place": [0, 0], "history": [self._evaluated(0)], "losses": []}
        left_out = 0
        windows = self.windows.training(*state["place"])
        with self._own_rng(), self.narrator.loop(what, section.steps, state["step"]) as progress:
            for step in range(state["step"], section.steps):
                torch.manual_seed(self._drawn(step))
                for group in optimiser.param_groups:
                    group["lr"] = section.learning_rate * _rate(step, section.steps, section.warmup_fraction)
                self.losses.progress = step / section.steps
                batches, state["place"] = self._batches(windows)
                losses, wrong = self._accumulated(step, batches)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), section.max_grad_norm)
                if wrong is None and not math.isfinite(norm):
                    wrong = "a sum of the members' gradients"
                if wrong is None:
                    optimiser.step()
                    state["losses"].append(losses)
                    left_out = 0
                else:
                    left_out += 1
                    self._leave_out(step, wrong, left_out)
                optimiser.zero_grad()
                state["step"] = step + 1
                self._record(state)
                if state["step"] % section.save_steps == 0 or state["step"] == section.steps:
                    self._save(optimiser, state)
                progress(state["step"], ", ".join(f"{size} {loss:.3g}" for size, loss in losses.items()))
        history: list[dict[str, Any]] = state["history"]
        return history

    @cached_property
    def _extremes(self) -> tuple[Architecture, Architecture, Architecture]:
        return extremes(self.space, self.parameters)

    def _own_rng(self) -> AbstractContextManager[None]:
        """What is drawn in this block on this rank's device leaves the generators as they were."""
        device = self.processes.device
        forked: AbstractContextManager[None] = torch.random.fork_rng(
            devices=[device] if device.type == "cuda" else []
        )
        return forked

    def _drawn(self, step: int) -> int:
        """The seed of a step on this rank."""
        return random.Random(f"{self.seed}/step/{step}/{self.processes.process_index}").getrandbits(63)

    def _batches(
        self, windows: Iterator[tuple[Window, int, int]]
    ) -> tuple[list[dict[str, Tensor]], list[int]]:
        """This rank's micro-batches of the next step, and the place behind them."""
        ranks, micro_batches = self.processes.num_processes, self.section.gradient_accumulation_steps
        taken = list(islice(windows, self.section.batch_size * micro_batches))
        mine = taken[self.processes.process_index :: ranks]
        size = len(mine) // micro_batches
        batches = [
            self._batch([window for window, *_ in mine[start : start + size]])
            for start in range(0, len(mine), size)
        ]
        return batches, list(taken[-1][1:])

    def _batch(self, windows: Sequence[Window]) -> dict[str, Tensor]:
        ids = torch.tensor(windows)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.masking is not None:
            batch["input_ids"], batch["labels"] = self.masking(ids, batch["attention_mask"])
        return {name: tensor.to(self.processes.device) for name, tensor in batch.items()}

    def _accumulated(
        self, step: int, batches: Sequence[dict[str, Tensor]]
    ) -> tuple[dict[str, float], str | None]:
        """Backpropagate a step's members into the shared gradients.

        Returns:
            The losses by size, over all ranks, and what of the first wrong member is not finite, or None.
        """
        members = self._members(step)
        counts = self._counts(batches, members[0])
        totals = torch.zeros(len(members), 2, device=self.processes.device)
        for batch in batches:
            signals = self._teacher_signals(batch)
            for place, member in enumerate(members):
                totals[place] += self._backward(member, batch, signals, counts)
        if self.processes.num_processes > 1:
            totals = reduce(totals, "sum")
            for parameter in self.superlm.model.parameters():
                if parameter.grad is not None:
                    parameter.grad = reduce(parameter.grad, "sum")
        found: list[list[float]] = totals.tolist()
        wrong = (
            f"a {what} of {member.key}"
            for member, values in zip(members, found, strict=True)
            for what, value in zip(("loss", "gradient"), values, strict=True)
            if not math.isfinite(value)
        )
        losses = [loss for loss, _ in found]
        by_size = {"largest": losses[:1], "smallest": losses[1:2], "random": losses[2:]}
        return {size: mean(each) for size, each in by_size.items() if each}, next(wrong, None)

    def _members(self, step: int) -> list[Architecture]:
        largest, _, smallest = self._extremes
        return sandwich(
            list(self.space),
            largest,
            smallest,
            random_subnets=self.section.random_subnets,
            seed=self.seed,
            step=step,
        )

    def _counts(self, batches: Sequence[dict[str, Tensor]], member: Architecture) -> dict[str, Tensor]:
        """Units of each objective over all micro-batches and ranks of a step: those of any member."""
        joined = self.losses[member].counts(*batches)
        counts = {
            name: torch.as_tensor(count, device=self.processes.device) for name, count in joined.items()
        }
        if self.processes.num_processes > 1:
            counts = {name: reduce(count, "sum") for name, count in counts.items()}
        return counts

    @torch.no_grad()
    def _teacher_signals(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with autocast(self.processes.device, self.teacher_precision):
            capture = Capture(self.teacher, self.losses.teacher_signals, only=True)
            return forward_signals(self.teacher, capture, batch)

    def _backward(
        self,
        member: Architecture,
        batch: Mapping[str, Tensor],
        signals: Mapping[str, Tensor],
        counts: Mapping[str, Tensor],
    ) -> Tensor:
        """A member's loss on a batch and the norm of its gradients, (2,)."""
        subnet, criterion = self.superlm.subnet(member), self.losses[member]
        with subnet.training():
            with autocast(self.processes.device, self.section.precision):
                capture = Capture(subnet.skeleton, criterion.student_signals, only=True)
                learned = forward_signals(subnet, capture, batch)
                loss, _ = criterion(learned, signals, batch, counts)
            loss.backward()
        return torch.stack([loss.detach(), subnet.gradient_norm])

    def _leave_out(self, step: int, wrong: str, in_a_row: int) -> None:
        """Say that a step is left out, or stop."""
        if self.section.not_finite == "stop":
            raise InvalidInput(
                "superlm.training",
                f"{wrong} that is not finite, at step {step + 1}",
                "it must be finite",
                "Leave such steps out (superlm.training.not_finite: skip, with --resume), or lower the "
                "learning rate or train in fp32, and begin again with --overwrite.",
            )
        if in_a_row == MOST_LEFT_OUT:
            raise InvalidInput(
                "superlm.training",
                f"{wrong} that is not finite, at step {step + 1}",
                f"{in_a_row} steps in a row were left out: this training won't recover",
                "Lower the learning rate, or train in fp32, and begin again with --overwrite.",
            )
        self.narrator.say(f"  step {step + 1} is left out: {wrong} is not finite")

    def _record(self, state: dict[str, Any]) -> None:
        """Put what the steps since the last record were like into the history, when it is time."""
        step, section = state["step"], self.section
        if step % section.evaluation_steps and step != section.steps:
            return
        losses, state["losses"] = state["losses"], []
        trained = {
            size: mean(each[size] for each in losses if size in each)
            for size in SIZES
            if any(size in each for each in losses)
        }
        state["history"].append({**self._evaluated(step), "training": trained})

    def _evaluated(self, step: int) -> dict[str, Any]:
        names = ("largest", "middle", "smallest")
        losses = self.held_out.mean_losses(self.superlm, self._extremes)
        return {"step": step, "held_out": dict(zip(names, losses, strict=True))}

    def _save(self, optimiser: AdamW, state: dict[str, Any]) -> None:
        if self.processes.is_main_process:
            self.checkpoint.save(self.superlm.model, optimiser, state)
        self.processes.wait_for_everyone()


def _rate(step: int, steps: int, warmup_fraction: float) -> float:
    """Part of the highest learning rate: it rises over the first steps, and falls linearly to 0."""
    warmup = warmup_fraction * steps
    return min(
        (step + 1) / warmup if warmup else 1.0,
        (steps - step) / (steps - warmup) if warmup < steps else 1.0,
        1.0,
    )
