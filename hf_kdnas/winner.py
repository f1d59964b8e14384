"""The winner: exported, quantised, measured against its teacher and scored on the reporting split."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from hf_kdnas.latency.export import export_model
from hf_kdnas.latency.measure import LatencyReport, measure
from hf_kdnas.latency.quantise import quantise
from hf_kdnas.run import RunFolder, atomic_folder, read_json, recover_folder, write_json
from hf_kdnas.tasks import evaluate_model, predict_onnx

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_kdnas.latency.target import LatencyTarget
    from hf_kdnas.plan import Plan
    from hf_kdnas.search.students import FullDistillation, Student


@dataclass(frozen=True)
class Proof:
    """What was measured of a finished student and its teacher.

    Attributes:
        latency: Of the student's own ONNX file, against the teacher's, timed in turn.
        int8: The same for the INT8 file, or None.
        pytorch: The same for the student as PyTorch runs it.
        int8_quality: Its metrics on the reporting split.
        teacher_quality: The teacher's metrics on the reporting split.
        export_difference: Largest difference between ONNX and PyTorch logits.
    """

    latency: LatencyReport
    int8: LatencyReport | None
    pytorch: LatencyReport
    int8_quality: dict[str, float] | None
    teacher_quality: dict[str, float]
    export_difference: float


def finish_winner(
    plan: Plan, folder: RunFolder, distillation: FullDistillation, teacher: PreTrainedModel, winner: Student
) -> Proof:
    """Write `student/`, measure it, and score teacher and student on the reporting split.

    The teacher's ONNX file stays in `teacher/`, so that anyone can measure again.
    """
    difference = _export(plan, folder, distillation, teacher, winner)
    onnx = folder / "student" / "onnx"
    reference = folder / "teacher" / "onnx" / "model.onnx"
    fp32 = _measured(folder, "fp32", onnx / "model.onnx", reference, plan.target)
    student = distillation.load(winner.architecture)
    pytorch = _measured(folder, "pytorch", student, reference, plan.target)
    int8, int8_quality = None, None
    if plan.recipe.export.int8:
        eight_bits = replace(plan.target, precision="int8")
        int8 = _measured(folder, "int8", onnx / "model_int8.onnx", reference, eight_bits)
        logits = predict_onnx(
            onnx / "model_int8.onnx",
            plan.task.reporting,
            pad_token_id=plan.task.pad_token_id,
            threads=plan.target.threads,
            provider=plan.target.provider,
            reduce=plan.task.reduced,
        )
        int8_quality = plan.task.score(logits, plan.task.reporting)
    return Proof(
        latency=fp32,
        int8=int8,
        pytorch=pytorch,
        int8_quality=int8_quality,
        teacher_quality=evaluate_model(teacher.to(PartialState().device), plan.task.reporting, plan.task),
        export_difference=difference,
    )


def _export(
    plan: Plan, folder: RunFolder, distillation: FullDistillation, teacher: PreTrainedModel, winner: Student
) -> float:
    """Write the teacher's graph, and the student's folder whole or not at all, unless they are there.

    Returns:
        The largest difference of the student's ONNX logits.
    """
    source = distillation.path(winner.architecture)
    target = folder / "student"
    recover_folder(target)
    note: dict[str, Any] | None = read_json(folder / "export.json")
    made_of = {"student": source.name, "exporter": plan.exporter.name, "int8": plan.recipe.export.int8}
    there = target.is_dir() and (folder / "teacher" / "onnx" / "model.onnx").is_file()
    if note is not None and there and made_of.items() <= note.items():
        return float(note["difference"])
    # What was found of another student; a card or report of it would stand beside this one's weights.
    for stale in (*folder.path.glob("latency_*.json"), folder / "results.json", folder / "export.json"):
        stale.unlink(missing_ok=True)
    export_model(teacher.cpu(), folder / "teacher", exporter=plan.exporter)
    with atomic_folder(target) as unfinished:
        for file in source.iterdir():
            if file.name != "score.json":
                shutil.copy2(file, unfinished / file.name)
        student = distillation.load(winner.architecture)
        for name, value in plan.task.extra_files(student.config).items():
            write_json(unfinished / name, value)
        report = export_model(student, unfinished, exporter=plan.exporter)
        if plan.recipe.export.int8:
            quantise(unfinished / "onnx" / "model.onnx", unfinished / "onnx" / "model_int8.onnx")
    write_json(folder / "export.json", {**made_of, "difference": report.max_abs_difference})
    return float(report.max_abs_difference)


def _measured(
    folder: RunFolder, name: str, model: Path | PreTrainedModel, reference: Path, target: LatencyTarget
) -> LatencyReport:
    """The student's latency against the fp32 teacher's; measured once in a run."""
    note = folder / f"latency_{name}.json"
    known = read_json(note)
    if known is not None and known["target"] == asdict(target):
        return LatencyReport.from_dict(known)
    report = measure(model, target, reference=reference)
    write_json(note, report.to_dict())
    return report
