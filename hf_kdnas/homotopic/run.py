"""Distil a student and narrow it on the way: segment after segment, each from the last one's checkpoint."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.criterion import DistillationCriterion
from hf_kdnas.distill.data import DistillationCollator, spread_rows
from hf_kdnas.distill.trainer import last_checkpoint, writing_checkpoint
from hf_kdnas.distill.training import logging_to, run_trainer, shared_arguments
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family
from hf_kdnas.homotopic.compaction import SCORES, TEACHER_UNITS, Compaction, compact
from hf_kdnas.homotopic.importance import GRADIENT_SCORES, RunningImportance, activation, magnitude
from hf_kdnas.homotopic.trainer import HomotopicTrainer
from hf_kdnas.processes import join_processes
from hf_kdnas.run import changes, read_json, write_json
from hf_kdnas.slicing import move_to, slice_student
from hf_kdnas.tasks import by_length

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hf_kdnas.distill.signals import TeacherSignals
    from hf_kdnas.homotopic.schedule import Segment
    from hf_kdnas.importance import Importance
    from hf_kdnas.progress import Narrator
    from hf_kdnas.recipe import TrainingSection
    from hf_kdnas.recipe_homotopic import HomotopicSection
    from hf_kdnas.tasks import Row
    from hf_kdnas.tasks.masking import Masking

SETTINGS = "settings.json"
# In it, a hash of what the student is cut from and learns from.
ORIGIN = "teacher or data"


def total_steps(section: TrainingSection, rows: int) -> int:
    """Optimiser steps of a training, however many ranks share them."""
    given = section.training_arguments.get("max_steps", -1)
    if given > 0:
        return int(given)
    whole = math.floor if section.training_arguments.get("dataloader_drop_last") else math.ceil
    batches = whole(rows / section.batch_size)
    return math.ceil(section.epochs * math.ceil(batches / section.gradient_accumulation_steps))


def settings_of(
    segments: Sequence[Segment],
    section: HomotopicSection,
    objectives: Mapping[str, Any],
    training: TrainingSection,
    seed: int,
) -> dict[str, Any]:
    """What a student that is begun has to go on with, as JSON gives it back."""
    settings: dict[str, Any] = json.loads(
        json.dumps(
            {
                "segments": [[each.start, each.end, each.shape.key] for each in segments],
                "homotopic": section.decisive,
                "objectives": objectives,
                "training": asdict(training),
                "seed": seed,
            }
        )
    )
    return settings


def refuse_others(folder: Path, settings: Mapping[str, Any]) -> None:
    """See that a folder holds no student that was begun by other settings.

    Raises:
        InvalidInput: If it does, naming what is other.
    """
    kept = read_json(folder / SETTINGS)
    changed = {} if kept is None else changes({name: kept.get(name) for name in settings}, settings)
    if changed:
        (*_, end, target), steps = kept["segments"][-1], settings["segments"][-1]
        others = [
            name if name in ("segments", ORIGIN) else f"{name} ({old!r}, now {new!r})"
            for name, (old, new) in changed.items()
        ]
        raise InvalidInput(
            "homotopic",
            f"{steps[2]} in {steps[1]} steps",
            f"{folder} was begun towards {target} in {end} steps, with other {' and '.join(others)}",
            "Take the old settings again, choose another folder, or start again with --overwrite.",
        )


@dataclass(frozen=True)
class HomotopicDistillation:
    """HomoDistil (arXiv 2302.09632): the student begins as its teacher, and ends as a narrower stock model.

    Units are only ever removed, not masked: a zeroed residual unit would still count in each LayerNorm's mean
    and variance. So every segment trains a stock model, and its cost falls with its width.

    Attributes:
        teacher: The teacher, alive.
        signals: What it says about the training rows, or None where it runs beside the student.
        segments: The schedule.
        section: How units are scored and looked at.
        training: How long and how fast.
        objectives: The losses, as in a recipe.
        rows: Tokenised training rows.
        held_out: Rows that the discrepancy is looked at on.
        masking: Hides tokens of the training rows, where that is the task.
        seed: Decides dropout and the order of the rows.
        narrator: Tells how it goes on.
        teacher_dtype: What a live teacher computes in.
        report_to: Trackers.
        origin: Hash of the teacher and the rows: another one can't go on in this one's folder.
        logs: Where TensorBoard's files go; None: beside the checkpoints.
    """

    teacher: PreTrainedModel
    signals: TeacherSignals | None
    segments: Sequence[Segment]
    section: HomotopicSection
    training: TrainingSection
    objectives: Mapping[str, Any]
    rows: Sequence[Row]
    held_out: Sequence[Row]
    masking: Masking | None
    seed: int
    narrator: Narrator
    teacher_dtype: str = "auto"
    report_to: Sequence[str] = ("none",)
    origin: str = ""
    logs: Path | None = None

    def run(self, folder: Path) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
        """Train all segments, going on where an earlier launch stopped.

        Args:
            folder: Holds a folder of checkpoints per segment; the last one's is left there.

        Returns:
            The student, and what was logged: discrepancies among it (see `HomotopicTrainer`).

        Raises:
            InvalidInput: If every score of a unit would be 0, or the folder was begun with another target or
                schedule, or from another origin.
        """
        self.section.check()
        processes = join_processes()
        self._keep_settings(folder)
        folders = [folder / f"segment-{number}" for number in range(len(self.segments))]
        begun = [number for number, each in enumerate(folders) if last_checkpoint(each) is not None]
        for number in range(max(begun, default=0), len(self.segments)):
            checkpoint = self._trained(self.segments[number], folders[number])
            processes.wait_for_everyone()  # all have read it before the first one cuts and removes it
            if number + 1 < len(self.segments):
                if processes.is_main_process:
                    following = folders[number + 1] / checkpoint.name
                    self._compact(checkpoint, following, self.segments[number], self.segments[number + 1])
                    shutil.rmtree(folders[number])
                processes.wait_for_everyone()
        history: list[dict[str, Any]] = read_json(checkpoint / "trainer_state.json")["log_history"]
        return self._loaded(checkpoint), history

    @cached_property
    def _teacher_shape(self) -> Architecture:
        return Architecture.from_config(self.teacher.config)

    def _keep_settings(self, folder: Path) -> None:
        settings = settings_of(self.segments, self.section, self.objectives, self.training, self.seed)
        settings[ORIGIN] = self.origin
        refuse_others(folder, settings)
        if PartialState().is_main_process:
            if not (folder / SETTINGS).is_file():  # a launch was killed while it deleted the rest
                for begun in folder.glob("segment-*"):
                    shutil.rmtree(begun)
            write_json(folder / SETTINGS, settings)
        PartialState().wait_for_everyone()

    def _trained(self, segment: Segment, folder: Path) -> Path:
        """The checkpoint at the end of a segment."""
        checkpoint = last_checkpoint(folder)
        if checkpoint is None or _step(checkpoint) < segment.end:
            self._train(segment, folder, checkpoint)
            checkpoint = last_checkpoint(folder)
        if checkpoint is None:
            raise InvalidInput(
                "output_dir",
                str(folder),
                "the checkpoint that the first process wrote is not there: all machines must see this folder",
                "Choose one on a file system that they share.",
            )
        return checkpoint

    def _train(self, segment: Segment, folder: Path, checkpoint: Path | None) -> None:
        if checkpoint is None:
            depth = segment.shape.num_hidden_layers
            student = slice_student(self.teacher, replace(self._teacher_shape, num_hidden_layers=depth))
            units = torch.arange(self._teacher_shape.hidden_size)
        else:
            student = self._loaded(checkpoint)
            units = load_file(checkpoint / SCORES)[TEACHER_UNITS]
        what = segment.shape.key
        arguments = shared_arguments(
            self.training,
            folder,
            objectives=dict(self.objectives),
            teacher_dtype=self.teacher_dtype,
            seed=self.seed,
            report_to=list(self.report_to),
            run_name=what,
            max_steps=self.segments[-1].end,
            save_strategy="steps",
            save_steps=self.section.save_steps,
        )
        if arguments.torch_compile:
            torch.compiler.reset()  # every shape is compiled anew, of which few are allowed
        with logging_to(self.logs or folder.with_name("logs"), arguments):
            trainer = HomotopicTrainer(
                student,
                arguments,
                self.signals or self.teacher,
                projection=self._projection(units),
                masking=self.masking,
                train_dataset=list(self.rows),
                segment=segment,
                running=self._running(student, checkpoint) if segment is not self.segments[-1] else None,
                teacher_units=units,
                reference=self.teacher,
                held_out=self._held_out_batches,
                evaluation_steps=self.section.evaluation_steps,
            )
        if checkpoint is None:
            trainer.criterion.begin_as_copy()
        run_trainer(trainer, folder, self.narrator, what)

    def _compact(self, source: Path, target: Path, segment: Segment, following: Segment) -> None:
        """Cut a segment's last checkpoint to the next one's shape; on one process of a launch."""
        student = self._loaded(source)
        criterion = DistillationCriterion(
            self.objectives,
            segment.shape,
            self._teacher_shape,
            projection=self._projection(load_file(source / SCORES)[TEACHER_UNITS]),
        )
        compaction = Compaction.by_importance(student, following.shape, self._importance(student, source))
        with writing_checkpoint(source, segment.end):
            compact(source, target, compaction, criterion)

    def _importance(self, student: PreTrainedModel, checkpoint: Path) -> Importance:
        running = self._running(student, checkpoint)
        if running is not None:
            return self._with_weights(running, student)
        weights = magnitude(student)
        if self.section.importance == "magnitude":
            return weights
        device = self.teacher.device
        move_to(student, device)
        collator = DistillationCollator(student.config.pad_token_id or 0, masking=self.masking)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            batch = collator(spread_rows(self.rows))
        inputs = {name: batch[name].to(device) for name in get_family(student.config).inputs if name in batch}
        found = activation(student, [inputs])
        move_to(student, torch.device("cpu"))
        # A task head's units are not looked at: all have 0.
        return {group: scores if scores.any() else weights[group] for group, scores in found.items()}

    def _with_weights(self, running: RunningImportance, student: PreTrainedModel) -> Importance:
        """The scores of gradients; of weights where there are none yet, as a copy without dropout has."""
        weights = magnitude(student)
        unknown = running.unknown(weights)
        if unknown:
            axes = ", ".join(sorted({axis for axis, _ in unknown}))
            self.narrator.say(f"  no gradients of {axes} yet: cut by magnitude")
        return running.scores() | {group: weights[group] for group in unknown}

    def _running(self, student: PreTrainedModel, checkpoint: Path | None) -> RunningImportance | None:
        """The scores of gradients so far, where units are scored by them."""
        section = self.section
        if section.importance not in GRADIENT_SCORES:
            return None
        running = RunningImportance(
            student, section.importance, smoothing=section.smoothing, uncertainty=section.uncertainty
        )
        if checkpoint is not None:
            scores = load_file(checkpoint / SCORES)
            scores.pop(TEACHER_UNITS)
            running.load_state_dict(scores)
        return running

    def _projection(self, units: Tensor) -> Tensor | None:
        """The fixed map from teacher to student states, where none is learned."""
        return torch.eye(self._teacher_shape.hidden_size)[:, units] if self.section.maps == "kept" else None

    @cached_property
    def _held_out_batches(self) -> list[dict[str, Any]]:
        spread, size = max(1, len(self.held_out) // self.section.held_out), self.training.batch_size
        rows = list(self.held_out)[::spread][: self.section.held_out]
        collator = DistillationCollator(self.teacher.config.pad_token_id or 0, masking=self.masking)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return [collator([rows[index] for index in batch]) for batch in by_length(rows, size)]

    def _loaded(self, checkpoint: Path) -> PreTrainedModel:
        student: PreTrainedModel = type(self.teacher).from_pretrained(
            checkpoint,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=self.teacher.config._attn_implementation,
        )
        student.config.name_or_path = ""
        return student


def _step(checkpoint: Path) -> int:
    return int(read_json(checkpoint / "trainer_state.json")["global_step"])
