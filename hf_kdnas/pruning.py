"""The stages of a run whose student begins as its teacher and is narrowed while it is distilled."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from hf_kdnas.architecture import Architecture
from hf_kdnas.homotopic.run import HomotopicDistillation
from hf_kdnas.homotopic.trainer import DISCREPANCY
from hf_kdnas.run import read_json, write_json
from hf_kdnas.search.students import FullDistillation
from hf_kdnas.stages import Stages

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_kdnas.homotopic.plan import HomotopicPlan
    from hf_kdnas.homotopic.schedule import Segment
    from hf_kdnas.recipe_homotopic import HomotopicSection
    from hf_kdnas.tasks import Row


@dataclass(frozen=True, kw_only=True)
class PrunedDistillation(FullDistillation):
    """Distils one student, narrowing it on the way.

    Attributes:
        segments: The schedule.
        pruning: How units are scored and looked at.
        held_out: Rows that the discrepancy is looked at on.
    """

    segments: Sequence[Segment]
    pruning: HomotopicSection
    held_out: Sequence[Row]

    def history_file(self, architecture: Architecture) -> Path:
        """What was logged while a student was trained."""
        return self.folder / f"{self.path(architecture).name}.history.json"

    def _distil(self, architecture: Architecture, path: Path, processes: PartialState) -> None:
        super()._distil(architecture, path, processes)
        if processes.is_main_process:
            shutil.rmtree(self._checkpoints)

    def _trained(self, architecture: Architecture, path: Path) -> PreTrainedModel:
        student, history = HomotopicDistillation(
            teacher=self.initialiser.teacher,
            signals=self.signals,
            segments=self.segments,
            section=self.pruning,
            training=self.section.training,
            objectives=self.section.objectives,
            rows=self.rows,
            held_out=self.held_out,
            masking=self.masking,
            seed=self.seed,
            narrator=self.narrator,
            teacher_dtype=self.teacher_dtype,
            report_to=self.report_to,
        ).run(self._checkpoints)
        if PartialState().is_main_process:
            write_json(self.history_file(architecture), history)
        return student

    @property
    def _checkpoints(self) -> Path:
        """One place for all settings, so that another target doesn't begin beside an unfinished student."""
        return self.folder / "homotopic.checkpoints"


class PruningStages(Stages):
    """The stages of `kdnas homotopic`."""

    plan: HomotopicPlan

    def tell_target(self) -> None:
        """Say which shape the recipe's target was rounded to, and which there are on the way."""
        widths = ", ".join(str(segment.shape.hidden_size) for segment in self.plan.segments)
        self.narrator.say(
            f"target {self.plan.section.target}: {self.plan.segments[-1].shape}, by hidden sizes {widths}"
        )

    def distillation(
        self, objectives: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> PrunedDistillation:
        """Distillation in full, from the teacher's widths to the target's."""
        plain, plan = super().distillation(objectives, seed), self.plan
        shapes = [[each.start, each.end, each.shape.key] for each in plan.segments]
        return PrunedDistillation(
            **{**vars(plain), "inputs": self.hash(plain.inputs, asdict(plan.section), shapes)},
            segments=plan.segments,
            pruning=plan.section,
            held_out=plan.task.selection,
        )

    def path(self) -> dict[str, Any]:
        """How the student was narrowed: its segments, and the discrepancies over the steps."""
        [target] = self.plan.space
        history = read_json(self.distillation().history_file(target))
        return {
            "settings": asdict(self.plan.section),
            "segments": [
                {"start": each.start, "end": each.end, "architecture": each.shape.key}
                for each in self.plan.segments
            ],
            "discrepancy": [each for each in history if any(name.startswith(DISCREPANCY) for name in each)],
        }
