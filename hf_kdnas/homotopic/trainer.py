"""The trainer of one segment: the steps between two compactions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.distill.checks import text_head
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.trainer import DistillationTrainer
from hf_kdnas.homotopic.compaction import LEARNED, NAMES, SCORES, TEACHER_UNITS
from hf_kdnas.recipe_homotopic import DISCREPANCY
from hf_kdnas.run import write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

    from hf_kdnas.homotopic.importance import RunningImportance
    from hf_kdnas.homotopic.schedule import Segment

TASK = "task"
# Another loss than those that say how far the student is from its teacher.
HELD_OUT_TASK = "held_out_task"


class HomotopicTrainer(DistillationTrainer):
    """A DistillationTrainer that stops where a segment ends, with a checkpoint that `compact` reads.

    Its arguments are those of the whole training: from that checkpoint the next segment's trainer goes on at
    the same step, learning rate and place in the data.

    The discrepancy between teacher and student on held-out rows, each term of the loss by name, is logged as
    `discrepancy_NAME` at the segment's start and end and every `evaluation_steps`, the loss on their labels
    as `held_out_task`.

    Args:
        *args: What DistillationTrainer takes.
        segment: The steps.
        running: Gathers the scores of units; None where none are removed by gradients at the segment's end.
        teacher_units: The teacher's residual units that the student has, (hidden,).
        reference: The teacher, alive, for the discrepancy.
        held_out: Batches of rows that are not trained on.
        evaluation_steps: From one look at the discrepancy to the next.
        **kwargs: What DistillationTrainer takes.
    """

    def __init__(
        self,
        *args: Any,
        segment: Segment,
        running: RunningImportance | None,
        teacher_units: Tensor,
        reference: PreTrainedModel,
        held_out: Sequence[Mapping[str, Tensor]],
        evaluation_steps: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._segment = segment
        self._running = running
        self._teacher_units = teacher_units
        self._reference = reference
        # DistillationTrainer looks after a live teacher alone, not after one beside its cached signals.
        cast("nn.Module", reference).to(self.args.device).requires_grad_(False).eval()
        self._held_out = held_out
        self._looked_at = [self.criterion]
        predictions = "logits" if self._masking is None else "mlm"
        if TASK in self.criterion.weights and predictions not in self.criterion.weights:
            ours, theirs = (Architecture.from_config(model.config) for model in (self._student, reference))
            criterion = DistillationCriterion({predictions: {}}, ours, theirs, head=text_head(self._student))
            self._looked_at.append(criterion)
        signals = frozenset[str]().union(*(each.teacher_signals for each in self._looked_at))
        self._reference_capture = Capture(reference, signals, only=True)
        self.add_callback(_Watch(self, evaluation_steps))

    @torch.no_grad()
    def discrepancy(self) -> dict[str, float]:
        """Each term of the loss by name, without its weight, on the held-out rows and without dropout.

        Beside the labels' that of the predictions (`logits`, or `mlm`) is among them, learned from or not.
        """
        student = self._student
        totals: dict[str, float] = defaultdict(float)
        batches = [self._prepare_inputs(dict(batch)) for batch in self._held_out]
        counts = [each.counts(*batches) for each in self._looked_at]
        student.eval()
        for batch in batches:
            with self.accelerator.autocast():
                learned = forward_signals(student, self._student_capture, batch)
            with self._teacher_autocast():
                wanted = forward_signals(self._reference, self._reference_capture, batch)
            for criterion, units in zip(self._looked_at, counts, strict=True):
                _, terms = criterion(learned, wanted, batch, units)
                for name, term in terms.items():
                    totals[name] += float(term)
        student.train()
        return totals

    def look(self) -> None:
        """Log the discrepancy, and the shape that it is of."""
        shape = Architecture.from_config(self._student.config)
        found = {
            HELD_OUT_TASK if name == TASK else f"{DISCREPANCY}{name}": value
            for name, value in self.discrepancy().items()
        }
        due = self.control.should_log
        self.log({**found, "hidden_size": shape.hidden_size, "parameters": self._student.num_parameters()})
        self.control.should_log = due  # the training loss is logged in its own turn

    def gather(self) -> None:
        """Take the gradients of a step into the scores, where it still counts when units are removed."""
        left = self._segment.end - self.state.global_step
        if self._running is not None and left <= self._running.memory:
            self._running.update(self._student)

    @property
    def segment(self) -> Segment:
        """The steps."""
        return self._segment

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.args.should_save:
            return
        scores = {} if self._running is None else self._running.state_dict()
        save_file({**scores, TEACHER_UNITS: self._teacher_units}, Path(output_dir) / SCORES)
        names = {id(parameter): name for name, parameter in self._student.named_parameters()}
        names |= {id(each): f"{LEARNED}{name}" for name, each in self.criterion.named_parameters()}
        assert self.optimizer is not None
        numbered = [names[id(each)] for group in self.optimizer.param_groups for each in group["params"]]
        write_json(Path(output_dir) / NAMES, numbered)


class _Watch(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Looks at a segment's steps."""

    def __init__(self, trainer: HomotopicTrainer, evaluation_steps: int) -> None:
        self._trainer = trainer
        self._evaluation_steps = evaluation_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.compute_steps(args, state.max_steps)  # of a checkpoint they are those of its launch
        if state.global_step == self._trainer.segment.start:
            self._trainer.look()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.gather()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        last = state.global_step == self._trainer.segment.end
        if last or state.global_step % self._evaluation_steps == 0:
            self._trainer.look()
        if last:
            # The loss first: what is logged behind the checkpoint is no part of the history.
            control.should_log = control.should_save = control.should_training_stop = True
