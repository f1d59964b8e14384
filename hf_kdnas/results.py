"""`results.json`: what a run found, the only source of its report and its model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from hf_kdnas.adapter import ADAPTER_CONFIG
from hf_kdnas.architecture import Architecture
from hf_kdnas.environment import environment
from hf_kdnas.families import get_family
from hf_kdnas.hub.sources import hub_commit, teacher_licence
from hf_kdnas.report.view import part
from hf_kdnas.search.reward import choose_winner
from hf_kdnas.tasks import evaluate_model

if TYPE_CHECKING:
    from hf_kdnas.latency.measure import LatencyReport
    from hf_kdnas.plan import Plan
    from hf_kdnas.recipe import ConstraintsSection, TeacherSection
    from hf_kdnas.run import RunFolder
    from hf_kdnas.search.students import FullDistillation, Student
    from hf_kdnas.search.study import Candidate
    from hf_kdnas.space import SearchSpace
    from hf_kdnas.winner import Proof


@dataclass(frozen=True)
class Findings:
    """What the stages of a run found.

    Attributes:
        space: The members that could be reached.
        finalists: Those distilled in full.
        winner: The finalist that was chosen.
        met: Whether it keeps to all constraints.
        candidates: All that a search tried.
        baselines: Hand-crafted shapes, distilled like the finalists.
        rivals: Finalists of a random search of the same budget; empty where none ran.
        comparison: The student from several signals, as `compare` returns it.
        homotopic: How the winner was narrowed (settings, segments, discrepancies); None where it was not.
    """

    space: SearchSpace
    finalists: Sequence[Student]
    winner: Student
    met: bool
    candidates: Sequence[Candidate] = ()
    baselines: Sequence[Student] = ()
    rivals: Sequence[Student] = ()
    comparison: Sequence[dict[str, Any]] = ()
    homotopic: Mapping[str, Any] | None = None


def collect_results(
    plan: Plan,
    folder: RunFolder,
    latencies: Mapping[Architecture, LatencyReport],
    distillation: FullDistillation,
    findings: Findings,
    proof: Proof,
) -> dict[str, Any]:
    """Everything worth knowing about a run, as JSON can hold it.

    Students are scored on the reporting split here, after the winner was chosen. Latencies are in
    milliseconds; `quality` is the metric on the reporting split, `selection_quality` that on the
    selection split.
    """
    recipe, task = plan.recipe, plan.task
    scores = _Scores(plan, distillation)
    winner = findings.winner
    quality = scores.of(winner.architecture)[task.metric]
    teacher_quality = proof.teacher_quality[task.metric]
    return {
        "name": recipe.name,
        "workflow": plan.workflow,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": recipe.seed,
        "task": {
            "kind": task.kind,
            "metric": task.metric,
            "dataset": full_path(task.dataset),
            "columns": list(task.columns),
            "labels": list(task.label_names),
            "rows": {
                "train": task.examples(task.train),
                "selection": task.examples(task.selection),
                "reporting": task.examples(task.reporting),
            },
        },
        "teacher": {
            **teacher_source(recipe.teacher),
            "fine_tuned": recipe.teacher.fine_tune is not None,
            "architecture": plan.teacher.key,
            "quality": teacher_quality,
            "metrics": proof.teacher_quality,
            "latency_ms": proof.latency.reference_median_ms,
            "parameters": plan.parameters(plan.teacher),
            "flops": plan.teacher.flops(recipe.latency.sequence_length),
        },
        "student": {
            "architecture": winner.architecture.key,
            "config": winner.architecture.as_dict(),
            "model_type": plan.config.model_type,
            "max_length": get_family(plan.config).max_length(plan.config),
            "quality": quality,
            "metrics": scores.of(winner.architecture),
            "selection_quality": winner.quality,
            "latency_ms": proof.latency.median_ms,
            "latency": proof.latency.to_dict(),
            "parameters": winner.parameters,
            "flops": winner.architecture.flops(recipe.latency.sequence_length),
            "int8": _int8(proof, task.metric),
            "pytorch": proof.pytorch.to_dict(),
            "export_difference": proof.export_difference,
        },
        "speedup": proof.latency.speedup,
        "retained": part(quality, teacher_quality),
        "constraints": asdict(recipe.search.constraints),
        "constraints_met": findings.met,
        "baselines": [_student(each, scores) for each in findings.baselines],
        "finalists": [
            {
                **_student(each, scores),
                **_proxy(each.architecture, findings.candidates),
                "winner": each is winner,
            }
            for each in findings.finalists
        ],
        "random_baseline": _best_rival(findings.rivals, recipe.search.constraints, scores),
        "candidates": [_candidate(each) for each in findings.candidates],
        "comparison": list(findings.comparison),
        "homotopic": findings.homotopic,
        "proxy_rank_correlation": _rank_correlation(findings),
        "space": {
            "preset": recipe.space.preset if plan.workflow == "search" else None,
            "size": len(plan.space),
            "reachable": len(findings.space),
        },
        "distillation": asdict(recipe.distillation),
        "initialisation": _initialisation(plan, findings),
        "search": asdict(recipe.search),
        "environment": {**environment(), "processes": str(PartialState().num_processes)},
        "latency_target": asdict(recipe.latency),
        "latency_reports": {shape.key: report.to_dict() for shape, report in latencies.items()},
        "recipe": (folder / "recipe.yaml").read_text(encoding="utf-8"),
    }


def _initialisation(plan: Plan, findings: Findings) -> str:
    if findings.homotopic is not None:
        return "copy"
    return plan.recipe.distillation.initialisation if plan.student is None else "given"


def teacher_source(section: TeacherSection) -> dict[str, Any]:
    """Where a teacher is from: its names, revision and licence.

    Args:
        section: The recipe's teacher.
    """
    return {
        "model": full_path(section.model),
        "base_model": section.base_model,
        "revision": section.revision,
        "commit": hub_commit(section.model, section.revision),
        "license": teacher_licence(section),
        "adapter": section.adapter and full_path(section.adapter),
        "adapter_revision": section.adapter_revision,
        "adapter_commit": section.adapter
        and hub_commit(section.adapter, section.adapter_revision, ADAPTER_CONFIG),
    }


def full_path(model: str) -> str:
    """A local folder's full path, which nobody takes for a Hub id; anything else as it is."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


class _Scores:
    """Metrics of students on the reporting split, each computed once."""

    def __init__(self, plan: Plan, distillation: FullDistillation) -> None:
        self._plan = plan
        self._distillation = distillation
        self._known: dict[Architecture, dict[str, float]] = {}

    def of(self, architecture: Architecture) -> dict[str, float]:
        if architecture not in self._known:
            student = self._distillation.load(architecture).to(PartialState().device)
            task = self._plan.task
            self._known[architecture] = evaluate_model(student, task.reporting, task)
        return self._known[architecture]

    def quality(self, architecture: Architecture) -> float:
        return self.of(architecture)[self._plan.task.metric]


def _student(student: Student, scores: _Scores) -> dict[str, Any]:
    return {
        "name": student.name,
        "architecture": student.architecture.key,
        "quality": scores.quality(student.architecture),
        "selection_quality": student.quality,
        "latency_ms": student.latency_ms,
        "ratio": student.ratio,
        "speedup": student.speedup,
        "parameters": student.parameters,
        "reward": student.reward,
    }


def _int8(proof: Proof, metric: str) -> dict[str, Any] | None:
    if proof.int8 is None or proof.int8_quality is None:
        return None
    return {
        "quality": proof.int8_quality[metric],
        "latency_ms": proof.int8.median_ms,
        "speedup": proof.int8.speedup,
        "latency": proof.int8.to_dict(),
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {**asdict(candidate), "architecture": candidate.architecture.key}


def _proxy(architecture: Architecture, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """What the short distillation said about a finalist; None where there was none."""
    found = next((each for each in candidates if each.architecture == architecture), None)
    return {
        "proxy_quality": found and found.quality,
        "proxy_reward": found and found.reward,
    }


def _best_rival(
    rivals: Sequence[Student], constraints: ConstraintsSection, scores: _Scores
) -> dict[str, Any] | None:
    """The random search's own winner, by the same rule."""
    return _student(choose_winner(rivals, constraints)[0], scores) if rivals else None


def _rank_correlation(findings: Findings) -> float | None:
    """Spearman's rank correlation of proxy and full quality over the finalists, where there are 3."""
    from scipy.stats import spearmanr

    if len(findings.finalists) < 3:
        return None
    proxies = [_proxy(each.architecture, findings.candidates)["proxy_quality"] for each in findings.finalists]
    value = float(spearmanr(proxies, [each.quality for each in findings.finalists]).statistic)
    return None if value != value else value
