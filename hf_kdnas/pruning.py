"""The stages of a run whose students begin as their teacher and are narrowed while they are distilled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from hf_kdnas.architecture import Architecture
from hf_kdnas.homotopic.plan import objectives_of, pruning_of, segments_of
from hf_kdnas.homotopic.run import HomotopicDistillation, refuse_others, settings_of
from hf_kdnas.recipe_homotopic import DISCREPANCY
from hf_kdnas.run import read_json, write_json
from hf_kdnas.search.students import FullDistillation
from hf_kdnas.stages import Stages

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_kdnas.homotopic.schedule import Segment
    from hf_kdnas.plan import Plan
    from hf_kdnas.recipe_homotopic import HomotopicSection
    from hf_kdnas.results import Findings
    from hf_kdnas.run import RunFolder
    from hf_kdnas.tasks import Row


@dataclass(frozen=True, kw_only=True)
class PrunedDistillation(FullDistillation):
    """Distils students, narrowing them on the way.

    Attributes:
        segments: The schedule of a shape.
        objectives: The losses of a shape.
        pruning: How units are scored and looked at.
        held_out: Rows that the discrepancy is looked at on.
        origin: Hash of the teacher and the rows.
        checkpoints: Where an unfinished student is; None: beside where it will be.
    """

    segments: Callable[[Architecture], Sequence[Segment]]
    objectives: Callable[[Architecture], dict[str, Any]]
    pruning: HomotopicSection
    held_out: Sequence[Row]
    origin: str
    checkpoints: Path | None = None

    def history_file(self, architecture: Architecture) -> Path:
        """What was logged while a student was trained."""
        return self.folder / f"{self.path(architecture).name}.history.json"

    def _trained(self, architecture: Architecture, path: Path) -> PreTrainedModel:
        student, history = HomotopicDistillation(
            teacher=self.initialiser.teacher,
            signals=self.signals,
            segments=self.segments(architecture),
            section=self.pruning,
            training=self.section.training,
            objectives=self.objectives(architecture),
            rows=self.rows,
            held_out=self.held_out,
            masking=self.masking,
            seed=self.seed,
            narrator=self.narrator,
            teacher_dtype=self.teacher_dtype,
            report_to=self.report_to,
            origin=self.origin,
            logs=self.folder / "logs" / path.name,
        ).run(self._checkpoints(path))
        if PartialState().is_main_process:
            write_json(self.history_file(architecture), history)
        return student

    def _checkpoints(self, path: Path) -> Path:
        return self.checkpoints or super()._checkpoints(path)


class PruningStages(Stages):
    """The stages of a run whose students are narrowed.

    Attributes:
        checkpoints: Where an unfinished student is, whatever the settings; None: beside where it will be.
    """

    checkpoints: Path | None = None

    def distillation(
        self, objectives: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> PrunedDistillation:
        """Distillation in full, from the teacher's widths to a student's."""
        plain, pruning = super().distillation(objectives, seed), pruning_of(self.recipe)
        return PrunedDistillation(
            **{**vars(plain), "inputs": self.hash(plain.inputs, pruning.decisive)},
            segments=partial(segments_of, self.plan),
            objectives=partial(objectives_of, self.plan),
            pruning=pruning,
            held_out=self.plan.task.selection,
            origin=self.hash(),
            checkpoints=self.checkpoints,
        )

    def finish(self, findings: Findings) -> dict[str, Any]:
        """Export the winner; write results, report and card, with the way that it was narrowed."""
        return super().finish(replace(findings, homotopic=self._narrowing(findings.winner.architecture)))

    def _narrowing(self, student: Architecture) -> dict[str, Any]:
        """How a student was narrowed: its segments, and the discrepancies over the steps."""
        distillation = self.distillation()
        history = read_json(distillation.history_file(student))
        return {
            "settings": asdict(distillation.pruning),
            "segments": [
                {"start": each.start, "end": each.end, "architecture": each.shape.key}
                for each in distillation.segments(student)
            ],
            "discrepancy": [each for each in history if any(name.startswith(DISCREPANCY) for name in each)],
        }


class OneTarget(PruningStages):
    """The stages of `kdnas homotopic`."""

    def __init__(self, plan: Plan, folder: RunFolder, processes: PartialState) -> None:
        super().__init__(plan, folder, processes)
        # So that another target doesn't begin beside an unfinished student.
        self.checkpoints: Path = folder / "students" / "homotopic.checkpoints"
        [self.target] = plan.space

    def check(self, overwrite: bool = False) -> None:
        """The same, and that no student is begun that is narrowed otherwise."""
        super().check(overwrite)
        if not overwrite:
            refuse_others(
                self.checkpoints,
                settings_of(
                    segments_of(self.plan, self.target),
                    pruning_of(self.recipe),
                    objectives_of(self.plan, self.target),
                    self.recipe.distillation.training,
                    self.recipe.seed,
                ),
            )

    def tell_target(self) -> None:
        """Say which shape the recipe's target was rounded to, and which there are on the way."""
        widths = ", ".join(str(each.shape.hidden_size) for each in segments_of(self.plan, self.target))
        self.narrator.say(f"target {pruning_of(self.recipe).target}: {self.target}, by hidden sizes {widths}")
