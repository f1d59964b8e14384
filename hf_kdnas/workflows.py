"""What the command line calls: each workflow strings stages together over a run folder."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_kdnas.content import rows_hash, settings_hash
from hf_kdnas.distill.data import DistillationCollator
from hf_kdnas.distill.signals import teacher_hash
from hf_kdnas.errors import InvalidInput
from hf_kdnas.hub.card import render_card
from hf_kdnas.latency.shape import export_shape
from hf_kdnas.latency.store import LatencyStore
from hf_kdnas.materials import Materials, check_room_for_signals, prepare_initialiser, prepare_signals
from hf_kdnas.plan import Plan, make_plan
from hf_kdnas.precision import resolve_precision
from hf_kdnas.processes import from_first, join_processes
from hf_kdnas.progress import Narrator
from hf_kdnas.recipe import recipe_fingerprint, recipe_to_yaml
from hf_kdnas.report import render_report
from hf_kdnas.resources import cache_dir
from hf_kdnas.results import Findings, collect_results
from hf_kdnas.run import RunFolder, require_writable, write_json
from hf_kdnas.search.driver import JOURNAL, SearchDriver
from hf_kdnas.search.latencies import ShapeLatencies
from hf_kdnas.search.mini_kd import MiniKD, proxy_rows
from hf_kdnas.search.reward import by_merit, choose_winner, reward
from hf_kdnas.search.storage import database, is_database
from hf_kdnas.search.students import FullDistillation, Student
from hf_kdnas.search.study import open_study, tell_baseline
from hf_kdnas.search.trackers import Trackers
from hf_kdnas.tasks import evaluate_model
from hf_kdnas.winner import finish_winner

if TYPE_CHECKING:
    from accelerate import PartialState
    from transformers import PreTrainedModel

    from hf_kdnas.architecture import Architecture
    from hf_kdnas.recipe import LatencySection, Recipe
    from hf_kdnas.search.study import Candidate
    from hf_kdnas.space import SearchSpace


def search(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Search, distil, export and report: everything that a recipe asks for.

    The same call goes on where an earlier one stopped, and does nothing twice.

    Args:
        recipe: The recipe.
        resume: Go on in an output folder that another recipe began.
        overwrite: Begin again in the output folder.

    Returns:
        What `results.json` holds; on other ranks than the first, an empty dict.

    Raises:
        InvalidInput: If the recipe can't be carried out.
    """
    processes = join_processes()
    plan = make_plan(recipe)
    folder = RunFolder(Path(recipe.output_dir))
    if processes.is_main_process:
        folder.open(recipe_to_yaml(recipe), recipe_fingerprint(recipe), resume=resume, overwrite=overwrite)
        require_writable(cache_dir(), "KDNAS_CACHE", "Set it to another folder.")
        if recipe.search.storage and is_database(recipe.search.storage):
            database(recipe.search.storage)  # refuses now what it can't open
        if "signals" not in folder.seconds():
            check_room_for_signals(plan)
    processes.wait_for_everyone()
    return _Search(plan, folder, processes).run()


def latency(model: str, *, reference: str | None, section: LatencySection) -> str:
    """Measure a model folder on ONNX Runtime, and tell the result.

    Args:
        model: Folder or Hub id of a model with a head; its ONNX file is used if it has one.
        reference: Another one, timed in turn with it.
        section: Where and how to measure.

    Raises:
        InvalidInput: If a model can't be found or exported.
    """
    from hf_kdnas.latency.folder import onnx_file
    from hf_kdnas.latency.measure import measure
    from hf_kdnas.latency.target import LatencyTarget

    target = LatencyTarget(**vars(section))
    with tempfile.TemporaryDirectory() as scratch:
        files = [
            onnx_file(each, Path(scratch) / name, precision=target.precision)
            for name, each in (("model", model), ("reference", reference))
            if each is not None
        ]
        report = measure(files[0], target, reference=files[1] if reference else None)
    return str(report)


def report(run_dir: Path) -> Path:
    """Render a run's report and model card again, from its results.json alone."""
    render_card(run_dir)
    return render_report(run_dir)


class _Search:
    """The stages of a search over one run folder."""

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
            reference=folder / "reference" / f"{settings_hash(plan.config.to_json_string())}.onnx",
            exporter=plan.exporter,
            store=LatencyStore(cache_dir() / "latency"),
        )

    def run(self) -> dict[str, Any]:
        """Run all stages; a rank other than the first returns an empty dict."""
        with self._stage("latency", f"latency of a space of {len(self.plan.space)} architectures"):
            space = self._reachable_space()
        with self._stage("teacher", f"teacher {self.recipe.teacher.model}"):
            self.initialiser = prepare_initialiser(self.plan, self.processes, self.narrator)
            self.teacher_quality = self._score(self.initialiser.teacher)
            self.narrator.say(f"  {self.plan.task.metric} {self.teacher_quality:.4f} on the selection split")
            if not self.teacher_quality > 0:
                raise InvalidInput(
                    "teacher",
                    f"{self.plan.task.metric} {self.teacher_quality}",
                    "must be above 0 on the selection split for a student to keep a part of it",
                    "Fine-tune it for longer (teacher.fine_tune), or look at its data.",
                )
        with self._stage("signals", "the teacher's signals"):
            signals = prepare_signals(self.plan, self.initialiser, self.processes, self.narrator)
            self.materials = Materials(
                self.initialiser, signals, DistillationCollator(self.plan.task.pad_token_id, signals)
            )
        with self._stage("search", f"search of {len(space)} architectures"):
            candidates = self._explore(self.recipe.search.sampler, space)
        with self._stage("finalists", "finalists and hand-crafted shapes, distilled in full"):
            finalists = self._distil(self._best(candidates))
            baselines = self._distil(self.plan.baselines)
            self._keep(baselines)
        rivals: list[Student] = []
        if self.recipe.search.random_baseline:
            with self._stage("random baseline", "random search of the same budget"):
                rivals = self._distil(self._best(self._explore("random", space)))
        if not self.processes.is_main_process:
            return {}
        winner, met = choose_winner(finalists, self.recipe.search.constraints)
        return self._finish(Findings(space, candidates, finalists, baselines, rivals, winner, met))

    def _finish(self, findings: Findings) -> dict[str, Any]:
        """Export the winner; write results, report and card."""
        key = findings.winner.architecture.key
        with self._stage("export", f"winner {key}: export, measure and score"):
            proof = finish_winner(
                self.plan, self.folder, self.distillation, self.initialiser.teacher, findings.winner
            )
            results = collect_results(
                self.plan, self.folder, self.latencies.used, self.distillation, findings, proof
            )
        results["seconds"] = self.folder.seconds()
        write_json(self.folder / "results.json", results)
        report(self.folder.path)
        return results

    @contextmanager
    def _stage(self, name: str, what: str) -> Iterator[None]:
        self.narrator.say(what)
        if self.processes.is_main_process:
            with self.folder.timed(name):
                yield
        else:
            yield

    def _reachable_space(self) -> SearchSpace:
        """The space without members that can't keep to the constraints on latency (on rank 0)."""
        space = self.plan.space
        if self.processes.is_main_process:
            export_shape(
                self.plan.model_class, self.plan.config, self.plan.exporter, self.latencies.reference
            )
            space = self.latencies.reachable(space, self.recipe.search.constraints, self.recipe.seed)
        self.processes.wait_for_everyone()
        return space

    def _score(self, model: PreTrainedModel) -> float:
        """Quality on the selection split: all that the search may see."""
        task, device = self.plan.task, self.processes.device
        precision = resolve_precision(device, self.recipe.distillation.training.precision)
        return evaluate_model(model.to(device), task.selection, task, precision=precision)[task.metric]

    def _explore(self, sampler: str, space: SearchSpace) -> list[Candidate]:
        """Run, or go on with, the episodes of a study."""
        recipe = self.recipe
        mini_kd = MiniKD(
            initialiser=self.initialiser,
            rows=proxy_rows(self.plan.task.train, recipe.search.proxy_fraction, recipe.seed),
            collator=self.materials.collator,
            objectives=recipe.distillation.objectives,
            section=recipe.search.proxy,
            seed=recipe.seed,
            score=self._score,
            device=self.processes.device,
        )
        folder = self._study_folder(sampler)
        with Trackers(recipe.report_to, self._study_name(folder), self.folder.path) as trackers:
            return SearchDriver(
                space=space,
                section=recipe.search,
                sampler=sampler,
                seed=recipe.seed,
                folder=folder,
                name=self._study_name(folder),
                latencies=self.latencies,
                mini_kd=mini_kd,
                processes=self.processes,
                narrator=self.narrator,
                track=trackers.log,
            ).run()

    def _study_folder(self, sampler: str) -> Path:
        return self.folder / "search" / f"{sampler.rpartition(':')[2]}-{self._search_inputs()}"

    def _study_name(self, folder: Path) -> str:
        """The study's name: in a shared storage, launches with the same inputs work together."""
        return f"{self.recipe.name}-{folder.name}"

    def _keep(self, baselines: list[Student]) -> None:
        """Put hand-crafted shapes into the study, beside the candidates."""
        if self.processes.is_main_process:
            folder = self._study_folder(self.recipe.search.sampler)
            study = open_study(self.recipe.search.storage or folder / JOURNAL, self._study_name(folder))
            for each in baselines:
                tell_baseline(
                    study,
                    each.name,
                    each.architecture,
                    quality=each.quality,
                    latency_ms=each.latency_ms,
                    ratio=each.ratio,
                )

    def _search_inputs(self) -> str:
        """Hash of what a candidate's outcome follows from; more episodes go on in the same study."""
        recipe = self.recipe
        search = asdict(recipe.search)
        for name in ("episodes", "finalists", "baselines", "random_baseline"):
            search.pop(name)
        distillation = [recipe.distillation.objectives, recipe.distillation.initialisation]
        return self._hash(search, distillation, asdict(recipe.space), asdict(recipe.latency))

    def _hash(self, *settings: Any) -> str:
        """Hash of settings, and of the teacher and the rows that they are applied to."""
        return settings_hash(self.base, self.recipe.seed, *settings)[:8]

    @cached_property
    def base(self) -> list[str]:
        """Hashes of the teacher and the rows."""
        task = self.plan.task
        return [teacher_hash(self.initialiser.teacher), rows_hash(task.train), rows_hash(task.selection)]

    def _best(self, candidates: list[Candidate]) -> dict[str, Architecture]:
        """The candidates to be distilled in full, by the winner's own rule.

        A short distillation understates quality: candidates that keep enough of it already come
        first, then those that come nearest.

        Raises:
            InvalidInput: If there is none.
        """
        ranked = by_merit(
            (self._candidate(each) for each in candidates if each.state == "complete"),
            self.recipe.search.constraints,
        )
        if not ranked:
            raise InvalidInput(
                "search",
                f"{len(candidates)} candidates",
                f"none has a finite {self.plan.task.metric} after its short distillation",
                "Distil them for longer (search.proxy), or ask for more episodes, and go on with --resume.",
            )
        return {each.name: each.architecture for each in ranked[: self.recipe.search.finalists]}

    def _candidate(self, candidate: Candidate) -> Student:
        """A candidate as if its short distillation were the full one."""
        known = (candidate.quality, candidate.latency_ms, candidate.ratio, candidate.reward)
        quality, latency_ms, ratio, reward = (value if value is not None else math.nan for value in known)
        return Student(
            name=candidate.architecture.key,
            architecture=candidate.architecture,
            quality=quality,
            retained=quality / self.teacher_quality,
            latency_ms=latency_ms,
            ratio=ratio,
            parameters=self.plan.parameters(candidate.architecture),
            reward=reward,
        )

    @cached_property
    def distillation(self) -> FullDistillation:
        """Full distillation, the same for finalists and hand-crafted shapes."""
        return FullDistillation(
            folder=self.folder / "students",
            inputs=self._hash(asdict(self.recipe.distillation)),
            initialiser=self.initialiser,
            section=self.recipe.distillation,
            rows=self.plan.task.train,
            signals=self.materials.signals,
            tokenizer=self.plan.tokenizer,
            seed=self.recipe.seed,
            score=self._score,
            narrator=self.narrator,
            report_to=self.recipe.report_to,
        )

    def _distil(self, shapes: Mapping[str, Architecture]) -> list[Student]:
        """Distil shapes in full, and say what each is worth."""
        return [self._student(name, architecture) for name, architecture in shapes.items()]

    def _student(self, name: str, architecture: Architecture) -> Student:
        quality = self.distillation.quality(architecture)
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
