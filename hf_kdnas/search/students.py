"""Students distilled in full: finalists and hand-crafted shapes, all in the same way."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState

from hf_kdnas.distill.training import train
from hf_kdnas.processes import from_first
from hf_kdnas.run import atomic_folder, read_json, recover_folder, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_kdnas.architecture import Architecture
    from hf_kdnas.distill.signals import TeacherSignals
    from hf_kdnas.initialisation import Initialiser
    from hf_kdnas.progress import Narrator
    from hf_kdnas.recipe import DistillationSection
    from hf_kdnas.tasks import Row
    from hf_kdnas.tasks.masking import Masking


@dataclass(frozen=True)
class Student:
    """A shape that was distilled in full, and what it is worth on the selection split.

    Attributes:
        name: A baseline's name, or the architecture's key.
        architecture: The shape.
        quality: The task's metric.
        retained: That quality over the teacher's.
        latency_ms: Median latency in milliseconds.
        ratio: Latency over the teacher's, timed in turn.
        parameters: Number of parameters.
        reward: Of quality and latency.
    """

    name: str
    architecture: Architecture
    quality: float
    retained: float
    latency_ms: float
    ratio: float
    parameters: int
    reward: float

    @property
    def speedup(self) -> float:
        """How many times as fast as the teacher."""
        return 1 / self.ratio


@dataclass(frozen=True)
class FullDistillation:
    """Distils shapes on all training rows, each into a folder of its own that is never made twice.

    Attributes:
        folder: Holds a folder per student.
        inputs: Hash of what students follow from besides their shape: part of their folders' names.
        initialiser: Makes the students.
        section: The recipe's distillation.
        rows: All training rows.
        signals: The teacher's cached signals, or None to run it live.
        masking: Hides tokens of the rows, where that is the task.
        tokenizer: Saved beside each student.
        seed: Decides drawn weights, dropout and the order of the rows.
        score: Quality of a student on the selection split.
        narrator: Tells how it goes on.
        teacher_dtype: What a live teacher computes in.
        report_to: Trackers.
    """

    folder: Path
    inputs: str
    initialiser: Initialiser
    section: DistillationSection
    rows: Sequence[Row]
    signals: TeacherSignals | None
    masking: Masking | None
    tokenizer: PreTrainedTokenizerBase
    seed: int
    score: Callable[[PreTrainedModel], float]
    narrator: Narrator
    teacher_dtype: str = "auto"
    report_to: Sequence[str] = ("none",)

    def path(self, architecture: Architecture) -> Path:
        """Folder of a student."""
        return self.folder / f"{architecture.key}-{self.inputs}"

    def quality(self, architecture: Architecture) -> float:
        """Quality on the selection split, after distilling the shape if that was not done before."""
        path = self.path(architecture)
        processes = PartialState()
        if processes.is_main_process:
            recover_folder(path)
        if not from_first(path.is_dir(), processes):
            self._distil(architecture, path, processes)
        processes.wait_for_everyone()  # no rank reads a checkpoint any more
        if processes.is_main_process:
            shutil.rmtree(self._checkpoints(path), ignore_errors=True)
        return float(read_json(path / "score.json")["selection"])

    def load(self, architecture: Architecture) -> PreTrainedModel:
        """A student that was distilled, in evaluation mode."""
        model: PreTrainedModel = type(self.initialiser.teacher).from_pretrained(self.path(architecture))
        model.eval()
        return model

    def _distil(self, architecture: Architecture, path: Path, processes: PartialState) -> None:
        student = self._trained(architecture, path)
        if processes.is_main_process:
            with atomic_folder(path) as unfinished:
                student.cpu().save_pretrained(unfinished)
                self.tokenizer.save_pretrained(unfinished)
                with torch.random.fork_rng(devices=[]):
                    write_json(unfinished / "score.json", {"selection": self.score(student)})

    def _trained(self, architecture: Architecture, path: Path) -> PreTrainedModel:
        """The student, trained."""
        student = self.initialiser.student(architecture, self.seed)
        train(
            student,
            self.section.training,
            self.section.objectives,
            self.rows,
            self._checkpoints(path),
            seed=self.seed,
            teacher=self.signals or self.initialiser.teacher,
            teacher_dtype=self.teacher_dtype,
            projection=self.initialiser.projection(architecture),
            masking=self.masking,
            narrator=self.narrator,
            what=architecture.key,
            report_to=self.report_to,
        )
        return student

    def _checkpoints(self, path: Path) -> Path:
        """Where a student is until it is whole: beside its folder."""
        return path.with_name(f"{path.name}.checkpoints")
