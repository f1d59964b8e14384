"""Transformers' Trainer with a distillation loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import has_length
from transformers.training_args import ParallelMode

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.arguments import CHECKPOINTING, DistillationArguments
from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.distill.checks import (
    check_dataset,
    check_labels,
    check_lengths,
    check_spans,
    check_teacher,
    check_vocabularies,
    refuse_loss,
    refuse_reentrant,
    refuse_sharding,
    text_head,
)
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.data import (
    LABELS,
    DistillationCollator,
    EpochOrder,
    LengthGroupedSampler,
    spread_rows,
    unpadded,
)
from hf_kdnas.distill.dropout import set_dropout
from hf_kdnas.distill.learned import load_learned, save_learned
from hf_kdnas.distill.ranks import leave_out_unused
from hf_kdnas.distill.signals import TeacherSignals
from hf_kdnas.errors import InvalidInput
from hf_kdnas.precision import TEACHER_DTYPES, autocast
from hf_kdnas.processes import from_first

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Sampler
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_kdnas.tasks.masking import Masking


class DistillationTrainer(Trainer):
    """Trains a student on a teacher's signals, live or cached, and on the labels.

    Every objective is a sum over its own units, divided by their number over all micro-batches and
    ranks of a step, so that accumulation and ranks give the gradient of the joined batch. Each is logged
    as `loss_NAME`. Maps that objectives learn are optimised with the student, kept beside each
    checkpoint in `criterion.safetensors`, and never part of the saved model.

    Evaluation asks the student alone: `eval_loss` is its own head's loss on the labels.

    Args:
        model: The student; None where `model_init` makes it (hyperparameter_search).
        args: The arguments, with the objectives.
        teacher: A live model, signals that were computed before, or None where no objective needs a
            teacher.
        projection: A fixed map from teacher to student states, (H_T, H_S), for the objectives that take
            one; None lets them learn maps.
        masking: Hides tokens of rows without labels, for a masked-LM head; the default collator does it.
        train_dataset: Rows as `DistillationCollator` takes them.
        eval_dataset: Rows likewise.
        data_collator: Makes the batches; by default a `DistillationCollator` with the signals.
        processing_class: The student's tokenizer.
        teacher_processing_class: The teacher's tokenizer, where it is another one: their vocabularies
            are compared.
        **kwargs: Further arguments of Trainer.

    Raises:
        InvalidInput: If teacher and student have other vocabularies, heads or numbers of labels, a layer or
            signal that an objective needs doesn't exist, no teacher is there for an objective that
            needs one, or the run is sharded (FSDP, DeepSpeed).
    """

    # Our loss is divided by the counts of the whole step: Trainer may not divide it again. This one is
    # for Transformers 5, model_accepts_loss_kwargs below for 4.57.
    loss_is_scaled_for_ga = True

    args: DistillationArguments
    train_dataset: Any

    def __init__(
        self,
        model: PreTrainedModel | None,
        args: DistillationArguments,
        teacher: PreTrainedModel | TeacherSignals | None = None,
        *,
        projection: Tensor | None = None,
        masking: Masking | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data_collator: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        check_vocabularies(processing_class, teacher_processing_class)
        check_dataset(train_dataset)
        refuse_loss(kwargs.get("compute_loss_func"))
        self._cached = (
            teacher if isinstance(teacher, TeacherSignals) else getattr(data_collator, "signals", None)
        )
        self.teacher = None if isinstance(teacher, TeacherSignals) else teacher
        self._projection = projection
        self._collates = data_collator is None
        self._masking = masking
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            processing_class=processing_class,
            **kwargs,
        )
        refuse_sharding(self.accelerator.distributed_type)
        self.model_accepts_loss_kwargs = True
        if self.teacher is not None:
            cast("nn.Module", self.teacher).to(args.device).requires_grad_(False).eval()
        self._epoch_order = EpochOrder()
        self.add_callback(self._epoch_order)
        self._attach(cast("PreTrainedModel", self.model))

    def _attach(self, student: PreTrainedModel) -> None:
        """Make what belongs to this student: its criterion, hooks and batches."""
        shape = Architecture.from_config(student.config)
        criterion = DistillationCriterion(
            cast("dict[str, Any]", self.args.objectives),
            shape,
            _teacher_shape(self.teacher, self._cached) or shape,
            projection=self._projection,
            head=text_head(student),
            seed=self.args.seed,
        )
        check_teacher(student, self.teacher, self._cached, criterion.teacher_signals)
        if not getattr(self.args, CHECKPOINTING):
            refuse_reentrant(student)
        set_dropout(student, self.args.dropout)
        self._student = student
        self.criterion = criterion.to(self.args.device)
        self._student_capture = Capture(student, criterion.student_signals, only=self._may_stop_early())
        self._read_only_needed()
        self._terms: dict[str, Tensor] = {}
        # The step at which each term was not finite for the first time; 0 where it always was.
        self._broken_at = torch.zeros(len(criterion.weights), dtype=torch.long, device=self.args.device)
        self._steps_since_log = 0

    def _may_stop_early(self) -> bool:
        """Whether a student's forward may end with its last signal, without a head that nothing reads.

        Where others wrap it, they want it whole: DDP's reducer, what was compiled, what is computed again.
        """
        args = self.args
        return args.parallel_mode == ParallelMode.NOT_PARALLEL and not (
            args.torch_compile or getattr(args, CHECKPOINTING)
        )

    def _read_only_needed(self) -> None:
        """Take those of the teacher's signals that the criterion reads; a layer search leaves fewer."""
        needed, self._teacher_capture = self.criterion.teacher_signals, None
        if self.teacher is not None:
            self._teacher_capture = Capture(self.teacher, needed, only=True)
        if self._collates:
            # Shared: workers of the loader may live on from epoch to epoch.
            epoch = self._epoch_order.epoch = torch.tensor((self.args.seed, 0)).share_memory_()
            self.data_collator = DistillationCollator(
                self._student.config.pad_token_id or 0,
                None if self._cached is None else self._cached.only(needed),
                masking=self._masking,
                epoch=epoch,
            )

    # What a batch is

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batch_size = self.args.train_batch_size * self.args.world_size
        lengths = self._checked(dataset)
        self._epoch_order.sampler = LengthGroupedSampler(lengths, batch_size, seed)
        return self._epoch_order.sampler

    def _checked(self, rows: Any, *, evaluated: bool = False) -> list[int]:
        """The lengths of rows that the models can take, with labels that the head can.

        Args:
            rows: A data set, or some rows of one.
            evaluated: Whether the student alone reads them, with its head's own loss.
        """
        lengths, labels, spans, collator = [], [], [], self.data_collator
        # Iterating has no end where a data set has rows by number alone and never raises IndexError.
        for row in map(
            unpadded, rows if hasattr(rows, "__iter__") else map(rows.__getitem__, range(len(rows)))
        ):
            lengths.append(len(row["input_ids"]))
            if isinstance(collator, DistillationCollator) and (column := collator.label_column(row)) in row:
                labels.append(row[column])
            if "start_positions" in row:
                spans.append(row)
        learned = "task" in self.criterion.weights
        if labels and (evaluated or learned):
            check_labels(labels, self._student)
        if learned and not evaluated:  # the head's own loss passes over answers that were cut off
            check_spans(spans)
        check_lengths(lengths, self._student.config, "student")
        if self.teacher is not None and not evaluated:
            check_lengths(lengths, self.teacher.config, "teacher")
        return lengths

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """Trainer's own, without the teacher's signals: they cover the training rows alone."""
        with _without_signals(self):
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """Trainer's own, without the teacher's signals: they cover the training rows alone."""
        with _without_signals(self):
            return super().get_test_dataloader(*args, **kwargs)

    # What a step is

    def get_batch_samples(  # type: ignore[override]
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], dict[str, Tensor]]:
        """The micro-batches of a step, and the units of each objective over all of them and all ranks."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        # Of a resumed run Transformers 4.57 takes none for steps of the epoch that were done before.
        self._steps_since_log += bool(samples)
        self.criterion.progress = self.state.global_step / max(1, self.state.max_steps)
        # Trainer empties the gradients of the student alone.
        self.criterion.zero_grad()
        return samples, self._counts(samples)

    def _counts(self, samples: list[Any]) -> dict[str, Tensor]:
        counts = self.criterion.counts(*samples)
        joined = torch.stack([torch.as_tensor(count).to(self.args.device) for count in counts.values()])
        if self.accelerator.num_processes > 1:
            joined = self.accelerator.reduce(joined, reduction="sum")
        return dict(zip(counts, joined.unbind(), strict=True))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The batch's part of the step's loss; in evaluation the loss of the student's own head.

        Args:
            model: The student, wrapped or not.
            inputs: A batch.
            return_outputs: Return the outputs as well.
            num_items_in_batch: Units of each objective in the whole step; None takes the batch's own.
        """
        if not model.training:
            names = (*self._student_capture.inputs, *LABELS)
            outputs = model(**{name: inputs[name] for name in names if name in inputs})
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        student = forward_signals(model, self._student_capture, inputs)
        counts = self.criterion.counts(inputs) if num_items_in_batch is None else num_items_in_batch
        loss, terms = self.criterion(student, self._teacher_signals(inputs), inputs, counts)
        for name, term in terms.items():
            self._terms[name] = self._terms.get(name, 0) + term
        broken = ~torch.stack(list(terms.values())).isfinite() & (self._broken_at == 0)
        self._broken_at = torch.where(broken, self.state.global_step + 1, self._broken_at)
        # DDP takes the mean over ranks where the step's loss is their sum.
        loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss, "logits": student.get("logits")}) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trainer's own, for texts that the student has positions for, without what it has no input for."""
        check_lengths([inputs["input_ids"].shape[1]], self._student.config, "student")
        names = (*self._student_capture.inputs, *self.label_names)
        read = {name: inputs[name] for name in names if name in inputs}
        return super().prediction_step(model, read, *args, **kwargs)

    def _stop_if_broken(self) -> None:
        """Stop at a term that is not finite."""
        found = zip(self.criterion.weights, self._broken_at.tolist(), strict=True)
        steps = {name: step for name, step in found if step}
        if steps:
            name = min(steps, key=lambda each: steps[each])
            raise InvalidInput(
                f"objectives.{name}",
                f"a loss that is not finite, first at step {steps[name]}",
                "it must be finite",
                "Lower the learning rate, or train in fp32; if it is so from step 1 on, look at the teacher.",
            )

    def _teacher_signals(self, inputs: Mapping[str, Any]) -> Mapping[str, Tensor]:
        if "teacher" in inputs or not self.criterion.teacher_signals:
            signals: Mapping[str, Tensor] = inputs.get("teacher", {})
            return signals
        if self.teacher is None or self._teacher_capture is None:
            raise InvalidInput(
                "data_collator",
                ", ".join(inputs),
                'the batches need "teacher" as well: the signals that were given',
                "Leave the collator out, or give a DistillationCollator with these signals.",
            )
        with torch.no_grad(), self._teacher_autocast():
            return forward_signals(self.teacher, self._teacher_capture, inputs)

    def _teacher_autocast(self) -> AbstractContextManager[None]:
        dtype = self.args.teacher_dtype
        if dtype == "auto":
            return cast("AbstractContextManager[None]", self.accelerator.autocast())
        return cast("AbstractContextManager[None]", autocast(self.args.device, TEACHER_DTYPES[dtype]))

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Trainer's own, and the mean of the learned maps' gradients over the ranks, as DDP does."""
        loss: Tensor = super().training_step(model, *args, **kwargs)
        # With this filter, on by default, Trainer waits for the loss at this point anyway; else a log does.
        if self.args.logging_nan_inf_filter:
            self._stop_if_broken()
        if self.accelerator.num_processes > 1 and self.accelerator.sync_gradients:
            for parameter in self.criterion.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        return loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own; the student's forward is afterwards as it was, without mixed precision."""
        if self.train_dataset is None:
            raise InvalidInput("train_dataset", None, "a training needs rows", "Give the trainer a data set.")
        output = super().train(*args, **kwargs)
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return output

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own, from constants that are fixed now; `model_init` made another student just before."""
        if not self.args.auto_find_batch_size:
            # Transformers 4.57 takes a checkpoint's own, which was another one on other ranks.
            kwargs["batch_size"] = self.args.train_batch_size
        if self.model is not self._student:
            self._attach(cast("PreTrainedModel", self.model))
        candidates = self.criterion.teacher_signals
        # Before the calibration, which then searches no other layers.
        if (checkpoint := kwargs.get("resume_from_checkpoint")) is not None:
            load_learned(self.criterion, Path(checkpoint))
        self._calibrate()
        if self.criterion.teacher_signals != candidates:
            self._read_only_needed()
        if self.args.eval_strategy != "no":
            self._check_evaluated()
        if self.accelerator.num_processes > 1:
            batch = self._prepare_inputs(self.data_collator([self.train_dataset[0]]))
            leave_out_unused(self._student, self._student_capture, self.criterion.student_signals, batch)
        return super()._inner_training_loop(*args, **kwargs)

    def _check_evaluated(self) -> None:
        """Refuse before the training what an evaluation would meet in the middle of it."""
        given: Any = self.eval_dataset
        for rows in filter(has_length, given.values() if isinstance(given, dict) else [given]):
            self._checked(rows, evaluated=True)

    def _calibrate(self) -> None:
        """Fix the objectives' constants on rows spread over the training set, the same on every rank."""
        if self.criterion.calibrated:
            return
        rows = spread_rows(self.train_dataset)
        self._checked(rows)
        batch = self._prepare_inputs(self.data_collator(rows))
        student = cast("nn.Module", self.model)
        training = student.training
        capture = Capture(student, self.criterion.student_signals, only=True)
        with torch.no_grad(), self.accelerator.autocast():
            signals = forward_signals(student.eval(), capture, batch)
        student.train(training)
        self.criterion.calibrate(signals, self._teacher_signals(batch), batch)
        if self.accelerator.num_processes > 1:
            # Ranks may have drawn other students, and so have found other layer maps.
            state = {name: tensor.cpu() for name, tensor in self.criterion.state_dict().items()}
            self.criterion.load_state_dict(from_first(state, PartialState()))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's own, with the mean of each term since the last time beside the loss."""
        self._stop_if_broken()
        if "loss" in logs and self._terms:
            sums = torch.stack(list(self._terms.values()))
            if self.accelerator.num_processes > 1:
                sums = self.accelerator.reduce(sums, reduction="sum")
            means = (sums / self._steps_since_log).tolist()
            logs |= {f"loss_{name}": value for name, value in zip(self._terms, means, strict=True)}
            self._terms, self._steps_since_log = {}, 0
        super().log(logs, *args, **kwargs)

    # What is optimised and kept of the learned maps

    def create_accelerator_and_postprocess(self) -> None:
        """Trainer's own, whose clipping takes the gradients of student and learned maps as one."""
        with self.args.accelerate_environment():
            super().create_accelerator_and_postprocess()
        clip = self.accelerator.clip_grad_norm_

        def clip_both(parameters: Iterable[Tensor], *args: Any, **kwargs: Any) -> Any:
            return clip([*parameters, *self.criterion.parameters()], *args, **kwargs)

        # Where Trainer calls it has no hook that both lines of Transformers have.
        self.accelerator.clip_grad_norm_ = clip_both  # type: ignore[method-assign]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Trainer's own, with the learned maps as one more group."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        learned = [parameter for parameter in self.criterion.parameters() if id(parameter) not in known]
        if learned and self.lr_scheduler is not None:
            optimizer.param_groups[0]["params"] += learned  # a scheduler of the user's counts the groups
        elif learned:
            optimizer.add_param_group({"params": learned, "weight_decay": self.args.weight_decay})
        return optimizer

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with writing_checkpoint(Path(str(self.args.output_dir)), self.state.global_step):
            super()._save_checkpoint(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            save_learned(self.criterion, Path(output_dir))


@contextmanager
def writing_checkpoint(folder: Path, step: int) -> Iterator[None]:
    """Tell a full disk as one: PyTorch and safetensors have errors of their own for it.

    Args:
        folder: Where the checkpoint goes; there by now.
        step: That it is of.

    Raises:
        InvalidInput: If it can't be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InvalidInput(
            "output_dir",
            str(folder),
            f"must take a checkpoint, and did not at step {step} ({error}; "
            f"{shutil.disk_usage(folder).free / 1e9:.2f} GB free)",
            "Make room and go on from the checkpoint before.",
        ) from error


def last_checkpoint(output_dir: Path) -> Path | None:
    """The latest whole checkpoint in a folder, or None: the one to resume from after a kill.

    Trainer writes a checkpoint file by file, its state last.
    """
    found = {}
    for folder in output_dir.glob("checkpoint-*"):
        try:
            state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        found[state["global_step"]] = folder
    return found[max(found)] if found else None


@contextmanager
def _without_signals(trainer: Trainer) -> Iterator[None]:
    collator = trainer.data_collator
    if isinstance(collator, DistillationCollator):
        trainer.data_collator = collator.without_signals()
    try:
        yield
    finally:
        trainer.data_collator = collator


def _teacher_shape(live: PreTrainedModel | None, cached: TeacherSignals | None) -> Architecture | None:
    if cached is not None:
        return cached.teacher
    return Architecture.from_config(live.config) if live is not None else None
