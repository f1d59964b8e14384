"""Train one model by a plain loop on one device: for ranks that each train a model of their own.

Trainer spreads every step over all ranks. Here they share nothing, and so may train other shapes, on other
rows, for other numbers of steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import get_linear_schedule_with_warmup

from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.distill.data import DistillationCollator, LengthGroupedSampler, spread_rows
from hf_kdnas.distill.dropout import set_dropout
from hf_kdnas.precision import autocast, teacher_precision
from hf_kdnas.slicing import move_to

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_kdnas.distill.criterion import DistillationCriterion
    from hf_kdnas.distill.objectives import Signals
    from hf_kdnas.progress import Narrator
    from hf_kdnas.recipe import TrainingSection
    from hf_kdnas.tasks import Row


def train_alone(
    student: PreTrainedModel,
    criterion: DistillationCriterion,
    section: TrainingSection,
    rows: Sequence[Row],
    collator: DistillationCollator,
    device: torch.device,
    *,
    teacher: PreTrainedModel | None = None,
    teacher_dtype: str = "auto",
    seed: int,
    narrator: Narrator,
    what: str,
) -> dict[str, float]:
    """Train a model in place, without checkpoints; it is left on the device, in training mode.

    Args:
        student: The model.
        criterion: The loss; what it learns is trained, too.
        section: How long and how fast; it has no `training_arguments`, which are Trainer's.
        rows: Tokenised training rows.
        collator: Makes batches, with the teacher's signals where they are cached.
        device: Where to train.
        teacher: Gives the signals that no batch brings; None where the criterion needs none.
        teacher_dtype: What it computes in.
        seed: Decides dropout, the order of the rows, and what `collator` draws.
        narrator: Tells how it goes on.
        what: Names the model there.

    Returns:
        Each term of the loss by name, its mean over the steps of the last epoch.
    """
    move_to(student, device)
    set_dropout(student, section.dropout)
    criterion.to(device)
    parameters = [*student.parameters(), *criterion.parameters()]
    optimiser = torch.optim.AdamW(
        parameters, lr=section.learning_rate, weight_decay=section.weight_decay, fused=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=section.precision == "fp16")
    epoch = math.ceil(len(rows) / section.batch_size / section.gradient_accumulation_steps)
    steps = _steps(section, len(rows))
    losses: dict[str, Tensor] = {}
    warmup = math.ceil(section.warmup_fraction * steps)
    schedule = get_linear_schedule_with_warmup(optimiser, warmup, steps)
    precisions = (section.precision, teacher_precision(teacher_dtype, section.precision))
    read = _reader(student, criterion, teacher, device, precisions)
    with torch.random.fork_rng(), narrator.loop(what, steps) as progress:
        torch.manual_seed(seed)
        if not criterion.calibrated:
            sample = _to_device(collator(spread_rows(rows)), device)
            student.eval()
            with torch.no_grad():
                criterion.calibrate(*read(sample), sample)
            # A layer search asks for all layers and settles on some.
            read = _reader(student, criterion, teacher, device, precisions)
            collator = collator.only(criterion.teacher_signals)
        student.train()
        batches = (_to_device(batch, device) for batch in _batches(section, rows, collator, seed))
        for step in range(steps):
            micro_batches = list(itertools.islice(batches, section.gradient_accumulation_steps))
            criterion.progress = step / steps
            counts = criterion.counts(*micro_batches)
            for batch in micro_batches:
                loss, terms = criterion(*read(batch), batch, counts)
                scaler.scale(loss).backward()
                if step >= steps - epoch:
                    losses = {name: losses.get(name, 0) + term for name, term in terms.items()}
            scaler.unscale_(optimiser)
            torch.nn.utils.clip_grad_norm_(parameters, section.max_grad_norm)
            scaler.step(optimiser)
            scaler.update()
            schedule.step()
            optimiser.zero_grad()
            progress(step + 1, "")
    return {name: float(loss) / min(epoch, steps) for name, loss in losses.items()}


def _steps(section: TrainingSection, rows: int) -> int:
    batches = math.ceil(rows / section.batch_size)
    return max(1, math.ceil(section.epochs * batches / section.gradient_accumulation_steps))


def _reader(
    student: PreTrainedModel,
    criterion: DistillationCriterion,
    teacher: PreTrainedModel | None,
    device: torch.device,
    precisions: tuple[str, str],
) -> Callable[[dict[str, Any]], tuple[Signals, Signals]]:
    """A function that gives the signals of student and teacher on a batch, each in its precision."""
    captured = Capture(student, criterion.student_signals, only=True)
    needed = criterion.teacher_signals
    wanted = Capture(teacher, needed, only=True) if teacher is not None and needed else None

    def read(batch: dict[str, Any]) -> tuple[Signals, Signals]:
        with autocast(device, precisions[0]):
            signals = forward_signals(student, captured, batch)
        if teacher is None or wanted is None or "teacher" in batch:
            return signals, batch.get("teacher", {})
        with autocast(device, precisions[1]):
            return signals, _without_gradient(teacher, wanted, batch)

    return read


def _batches(
    section: TrainingSection, rows: Sequence[Row], collator: DistillationCollator, seed: int
) -> Iterator[dict[str, Any]]:
    """Batches of one epoch after another, without end."""
    sampler = LengthGroupedSampler([len(row["input_ids"]) for row in rows], section.batch_size, seed)
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        in_epoch = replace(collator, epoch=torch.tensor((seed, epoch)))
        for indices in sampler.batches():
            yield in_epoch([rows[index] for index in indices])


def _to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: _to_device(value, device) if isinstance(value, dict) else value.to(device)
        for name, value in batch.items()
    }


@torch.no_grad()
def _without_gradient(teacher: PreTrainedModel, capture: Capture, batch: dict[str, Any]) -> dict[str, Tensor]:
    return forward_signals(teacher, capture, batch)
