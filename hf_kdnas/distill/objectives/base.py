"""What an objective is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hf_kdnas.architecture import Architecture
from hf_kdnas.importance import UnitGroup

Signals: TypeAlias = Mapping[str, Tensor]
Batch: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Head:
    """What the outputs of a head for whole texts mean.

    Attributes:
        problem: Transformers' `problem_type`; None where the labels say it, whole numbers being classes.
        num_labels: Number of outputs.
    """

    problem: str | None
    num_labels: int


class SharedSignals(dict[str, Tensor]):
    """A teacher's signals of a batch on which many students are compared, none of them trained.

    What an objective needs of the teacher alone, is made for the first student and kept for the others.

    Args:
        signals: The teacher's signals by name.
        batch: The batch.
    """

    def __init__(self, signals: Signals, batch: Batch) -> None:
        padding = ~batch["attention_mask"].bool()
        super().__init__({name: _cleaned(signal, padding) for name, signal in signals.items()})
        self._made: dict[Hashable, Any] = {}

    def made(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is kept under a key, made now if nothing is."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class Objective(nn.Module):
    """One term of the distillation loss: a sum over units, with the number of units beside it.

    The sum, not the mean, because a step may be spread over micro-batches and ranks of different
    sizes: the caller divides by the count over all of them. Subclasses set `student_signals` and
    `teacher_signals` in their constructor and implement `count` and `total`.

    Signals are named "logits", (batch, labels), or (batch, length, labels) of a head that reads every
    token (see `objectives.outputs`); "hidden.K" (batch, length, hidden), K = 0 for the
    output of the embeddings, then layers from 1; "query.K", "key.K", "value.K" (batch, length, heads x
    head size). What they hold at padded positions means nothing.

    Args:
        student: Shape of the student.
        teacher: Shape of the teacher.

    Attributes:
        student_signals: Names of the student's signals that `forward` reads.
        teacher_signals: Names of the teacher's signals that `forward` reads.
        head: The student's head for whole texts; None for another one, or where the labels alone say what
            they mean.
        calibrated: Whether there is nothing that `calibrate` has still to fix.
    """

    # Whether `total` takes tokens out of the signals first, which then come as the models give them.
    selects = False

    head: Head | None = None
    student_signals: frozenset[str] = frozenset()
    teacher_signals: frozenset[str] = frozenset()

    # Whether the current `forward` was called under autocast.
    _autocast = False

    def __init__(self, student: Architecture, teacher: Architecture) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.calibrated = type(self).calibrate is Objective.calibrate

    def count(self, batch: Batch) -> int | Tensor:
        """Number of units in a batch, from its masks and labels alone (no signals)."""
        raise NotImplementedError

    def total(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Sum of the loss over the units of a batch.

        Autocast is off, signals come in fp32 at least and with zeros at padded positions, but where the
        objective `selects`.
        """
        raise NotImplementedError

    def calibrate(self, student: Signals, teacher: Signals, batch: Batch) -> None:
        """Fix, from a sample of both models' signals, what has to stay the same in all batches."""

    def begin_as_copy(self) -> None:
        """Set what is learned to what suits a student that is its teacher's copy: maps to the identity."""

    def student_units(self, name: str) -> tuple[UnitGroup | None, ...]:
        """What each dimension of a tensor of the state indexes of the student's units; empty for none.

        Where the student loses units while it is trained, what was learned about them goes with them.
        """
        return ()

    def reads_queries(self, name: str) -> bool:
        """Whether a tensor of the state maps the student's queries, whose scale a cut may change."""
        return False

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """The sum of the loss over the batch's units, in fp32 also under autocast, but for learned maps.

        Args:
            student: The student's signals by name.
            teacher: The teacher's signals by name, without gradients; `SharedSignals` where students are
                compared and not trained.
            batch: `attention_mask` (batch, length), and `labels` or `start_positions` and `end_positions`
                where there are any: they say which task it is of.
        """
        padding = ~batch["attention_mask"].bool()
        device = padding.device.type
        self._autocast = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False):
            return self.total(
                self._given(student, self.student_signals, padding),
                teacher
                if isinstance(teacher, SharedSignals)
                else self._given(teacher, self.teacher_signals, padding),
                batch,
            )

    def _given(self, signals: Signals, names: frozenset[str], padding: Tensor) -> Signals:
        return {name: signals[name] if self.selects else _cleaned(signals[name], padding) for name in names}

    def mapped(self, learned: nn.Module, states: Tensor) -> Tensor:
        """States through a learned map: computed as the model's own layers are, returned in fp32 at least.

        In fp32 beside a model in bf16 one map of a hidden state would cost as much as a layer on a GPU.
        """
        with torch.autocast(states.device.type, enabled=self._autocast):
            return at_least_fp32(learned(states))


def _cleaned(signal: Tensor, padding: Tensor) -> Tensor:
    """A signal in fp32 at least, emptied where it has padding.

    Emptied before it is used, because what stands there may be infinite, and would reach the real
    tokens through the matrix products of a backward pass.
    """
    signal = at_least_fp32(signal)
    return signal.masked_fill(padding[..., None], 0) if signal.dim() > 2 else signal


def at_least_fp32(tensor: Tensor) -> Tensor:
    """A tensor in fp32 where it comes in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def count_samples(batch: Batch) -> int:
    """Sequences in a batch."""
    return len(batch["attention_mask"])


def count_tokens(batch: Batch) -> Tensor:
    """Tokens in a batch, without padding."""
    tokens: Tensor = batch["attention_mask"].sum()
    return tokens


def sum_over_tokens(values: Tensor, batch: Batch) -> Tensor:
    """Sum of `values` (batch, length) over the tokens that are not padding."""
    total: Tensor = (values * batch["attention_mask"]).sum()
    return total
