"""The stages that runs share: teacher, signals, distillation in full, and the winner's proof."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_kdnas.content import rows_hash, settings_hash, weights_hash
from hf_kdnas.distill.data import DistillationCollator
from hf_kdnas.distill.signal_keys import teacher_hash
from hf_kdnas.errors import InvalidInput
from hf_kdnas.hub.card import render_card
from hf_kdnas.latency.store import LatencyStore
from hf_kdnas.materials import Materials, check_room_for_signals, prepare_initialiser, prepare_signals
from hf_kdnas.precision import resolve_precision
from hf_kdnas.processes import from_first
from hf_kdnas.progress import Narrator
from hf_kdnas.report import render_report
from hf_kdnas.resources import cache_dir
from hf_kdnas.results import Findings, collect_results
from hf_kdnas.run import require_writable, write_json
from hf_kdnas.search.latencies import ShapeLatencies
from hf_kdnas.search.reward import reward
from hf_kdnas.search.storage import database, is_database
from hf_kdnas.search.students import FullDistillation, Student
from hf_kdnas.tasks import evaluate_model, predict
from hf_kdnas.winner import finish_winner

if TYPE_CHECKING:
    from accelerate import PartialState
    from transformers import PreTrainedModel

    from hf_kdnas.architecture import Architecture
    from hf_kdnas.plan import Plan
    from hf_kdnas.run import RunFolder


class Stages:
    """What a workflow does one after another over one run folder.

    Args:
        plan: The resolved recipe.
        folder: The run folder; opened after `check`.
        processes: The ranks of this launch.

    Attributes:
        latencies: Measures shapes against the teacher's.
        initialiser: Holds the prepared teacher and makes students; from `prepare` on.
        materials: What students are made of; from `prepare` on.
        teacher_quality: On the selection split; from `prepare` on.
    """

    def __init__(self, plan: Plan, folder: RunFolder, processes: PartialState) -> None:
        self.plan = plan
        self.recipe = plan.recipe
        self.folder = folder
        self.processes = processes
        self.narrator = Narrator(processes.is_main_process)
        self.latencies = ShapeLatencies(
            config=plan.config,
            model_class=plan.model_class,
            target=plan.target,
            exporter=plan.exporter,
            store=LatencyStore(cache_dir() / "latency"),
        )

    def stage(self, name: str, what: str) -> AbstractContextManager[None]:
        """Say what begins, and add its seconds to the run's."""
        return self.folder.stage(name, what, self.narrator)

    def check(self, overwrite: bool = False) -> None:
        """Look at everything that the run needs, before anything is written or deleted (on rank 0).

        Args:
            overwrite: Whether what an earlier run left in the folder will be deleted.

        Raises:
            InvalidInput: Naming the first thing that won't do.
        """
        require_writable(cache_dir(), "KDNAS_CACHE", "Set it to another folder.")
        storage = self.recipe.search.storage
        if storage and is_database(storage):
            database(storage)  # refuses now what it can't open
        elif storage:
            require_writable(Path(storage).parent, "search.storage", "Name a file in another folder.")
        if overwrite or "signals" not in self.folder.seconds():
            check_room_for_signals(self.plan)

    def prepare(self) -> None:
        """Load or fine-tune the teacher, and compute what it says about the training rows.

        Raises:
            InvalidInput: If the teacher has no quality that a student could keep.
        """
        with self.stage("teacher", f"teacher {self.recipe.teacher.model}"):
            self.initialiser = prepare_initialiser(self.plan, self.processes, self.narrator)
            self._ask_teacher()
            # Of one rank: another GPU may round another way, and ranks choose by it.
            alone = self.processes.is_main_process
            self.teacher_quality = from_first(
                self.score(self.initialiser.teacher) if alone else math.nan, self.processes
            )
            self.narrator.say(f"  {self.plan.task.metric} {self.teacher_quality:.4f} on the selection split")
            if not self.teacher_quality > 0:
                raise InvalidInput(
                    "teacher",
                    f"{self.plan.task.metric} {self.teacher_quality}",
                    "must be above 0 on the selection split for a student to keep a part of it",
                    "Fine-tune it for longer (teacher.fine_tune), or look at its data.",
                )
        with self.stage("signals", "the teacher's signals"):
            signals = prepare_signals(self.plan, self.initialiser, self.processes, self.narrator)
            self.materials = Materials(
                self.initialiser,
                signals,
                DistillationCollator(self.plan.task.pad_token_id, signals, masking=self.plan.task.masking),
            )

    def _ask_teacher(self) -> None:
        """Put the teacher's answers beside the rows, where scores compare with them."""
        task, teacher = self.plan.task, self.initialiser.teacher
        answered = task.with_references(lambda rows: predict(teacher, rows, reduce=task.reduced))
        if answered is not task:
            self.plan = replace(self.plan, task=answered)

    def score(self, model: PreTrainedModel) -> float:
        """Quality on the selection split: all that may be chosen by."""
        task, device = self.plan.task, self.processes.device
        precision = resolve_precision(device, self.recipe.distillation.training.precision)
        return evaluate_model(model.to(device), task.selection, task, precision=precision)[task.metric]

    def hash(self, *settings: Any) -> str:
        """Hash of settings, and of the teacher and the rows that they are applied to."""
        return settings_hash(self._base, *settings)[:8]

    @cached_property
    def _base(self) -> list[str]:
        """Hashes of the teacher and the rows, and what rows are scored by."""
        task, teacher = self.plan.task, self.initialiser.teacher
        rows = [rows_hash(self.plan.distilled_rows), rows_hash(task.selection)]
        return [teacher_hash(teacher), self.recipe.teacher.dtype, *rows, task.metric]

    @cached_property
    def brought(self) -> list[str]:
        """Hashes of weights that students begin with and that are not the teacher's, and of how."""
        initialiser = self.initialiser
        if initialiser.given is not None:
            return [weights_hash(initialiser.given)]
        superlms = [weights_hash(superlm) for superlm in initialiser.superlms]
        return [initialiser.layers, *superlms] if superlms else []

    def distillation(
        self, objectives: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> FullDistillation:
        """Distillation in full, by default with the recipe's own objectives and seed."""
        section = self.recipe.distillation
        if objectives is not None:
            section = replace(section, objectives=dict(objectives))
        seed = self.recipe.seed if seed is None else seed
        # Made texts have no labels.
        from_labels = set(section.objectives) == {"task"}
        settings = asdict(section)
        settings.pop("superlm")  # its weights count, not where they are
        kept = self.materials.signals is not None
        settings["signals"] = section.signals.precision if kept else None  # not what they may take
        return FullDistillation(
            folder=self.folder / "students",
            inputs=self.hash(seed, settings, *self.brought),
            initialiser=self.initialiser,
            section=section,
            rows=self.plan.task.train if from_labels else self.plan.distilled_rows,
            signals=self.materials.signals,
            masking=self.plan.task.masking,
            tokenizer=self.plan.tokenizer,
            seed=seed,
            score=self.score,
            narrator=self.narrator,
            teacher_dtype=self.recipe.teacher.dtype,
            report_to=self.recipe.report_to,
        )

    def distil(self, shapes: Mapping[str, Architecture]) -> list[Student]:
        """Distil shapes in full, and say what each is worth."""
        return [self._student(name, architecture) for name, architecture in shapes.items()]

    def _student(self, name: str, architecture: Architecture) -> Student:
        quality = self.distillation().quality(architecture)
        measured = from_first(
            self.latencies(architecture) if self.processes.is_main_process else None, self.processes
        )
        assert measured is not None
        settings = self.recipe.search
        return Student(
            name=name,
            architecture=architecture,
            quality=quality,
            retained=quality / self.teacher_quality,
            latency_ms=measured.median_ms,
            ratio=measured.ratio,
            parameters=self.plan.parameters(architecture),
            reward=reward(quality, measured.ratio, settings.alpha, settings.beta),
        )

    def finish(self, findings: Findings) -> dict[str, Any]:
        """Export the winner; write results, report and card."""
        key, distillation = findings.winner.architecture.key, self.distillation()
        with self.stage("export", f"winner {key}: export, measure and score"):
            proof = finish_winner(
                self.plan, self.folder, distillation, self.initialiser.teacher, findings.winner
            )
            results = collect_results(
                self.plan, self.folder, self.latencies.used, distillation, findings, proof
            )
        results["seconds"] = self.folder.seconds()
        write_json(self.folder / "results.json", results)
        render_card(self.folder.path)
        render_report(self.folder.path)
        return results
