"""The stages of a search: latency, short distillations of candidates, finalists in full."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_kdnas.errors import InvalidInput
from hf_kdnas.pruning import PruningStages
from hf_kdnas.results import Findings
from hf_kdnas.search.driver import JOURNAL, SearchDriver
from hf_kdnas.search.mini_kd import MiniKD, proxy_rows
from hf_kdnas.search.reward import by_merit, choose_winner
from hf_kdnas.search.students import Student
from hf_kdnas.search.study import open_study, tell_baseline
from hf_kdnas.search.trackers import Trackers
from hf_kdnas.stages import Stages

if TYPE_CHECKING:
    from hf_kdnas.architecture import Architecture
    from hf_kdnas.search.study import Candidate
    from hf_kdnas.space import SearchSpace


class SearchStages(Stages):
    """The stages of a search."""

    def check(self, overwrite: bool = False) -> None:
        """The same, and that the space has a member that is fast enough."""
        super().check(overwrite)
        self.latencies.require_reachable(self.plan.space.members, self.recipe.search.constraints)

    def run(self) -> dict[str, Any]:
        """Run all stages; a rank other than the first returns an empty dict."""
        with self.stage("latency", f"latency of a space of {len(self.plan.space)} architectures"):
            space = self._reachable_space()
        self.prepare()
        with self.stage("search", f"search of {len(space)} architectures"):
            candidates = self._explore(self.recipe.search.sampler, space)
        with self.stage("finalists", "finalists and hand-crafted shapes, distilled in full"):
            finalists = self.distil(self._best(candidates))
            baselines = self.distil(self.plan.baselines)
            self._keep(baselines)
        rivals: list[Student] = []
        if self.recipe.search.random_baseline:
            with self.stage("random baseline", "random search of the same budget"):
                rivals = self.distil(self._best(self._explore("random", space)))
        if not self.processes.is_main_process:
            return {}
        winner, met = choose_winner(finalists, self.recipe.search.constraints)
        for each in candidates:
            self.latencies(each.architecture)  # an earlier launch may have measured it: reported all the same
        return self.finish(Findings(space, finalists, winner, met, candidates, baselines, rivals))

    def _reachable_space(self) -> SearchSpace:
        """The space without members that can't keep to the constraints on latency (on rank 0)."""
        space = self.plan.space
        if self.processes.is_main_process:
            space = self.latencies.reachable(space, self.recipe.search.constraints, self.recipe.seed)
        self.processes.wait_for_everyone()
        return space

    def _explore(self, sampler: str, space: SearchSpace) -> list[Candidate]:
        """Run, or go on with, the episodes of a study."""
        recipe = self.recipe
        mini_kd = MiniKD(
            initialiser=self.initialiser,
            rows=proxy_rows(self.plan.distilled_rows, recipe.search.proxy_fraction, recipe.seed),
            collator=self.materials.collator,
            objectives=recipe.distillation.objectives,
            section=recipe.search.proxy,
            seed=recipe.seed,
            score=self.score,
            quality=recipe.search.quality,
            device=self.processes.device,
            teacher_dtype=recipe.teacher.dtype,
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
        for name in ("episodes", "finalists", "baselines", "random_baseline", "finalise"):
            search.pop(name)
        space = [asdict(recipe.space), *(member.key for member in self.plan.space)]
        distillation = [recipe.distillation.objectives, recipe.distillation.initialisation, *self.brought]
        return self.hash(recipe.seed, search, distillation, space, asdict(recipe.latency))

    def _best(self, candidates: list[Candidate]) -> dict[str, Architecture]:
        """The candidates to be distilled in full, by the winner's own rule.

        A short distillation understates quality: candidates that keep enough of it already come
        first, then those that come nearest.

        Raises:
            InvalidInput: If there is none.
        """
        constraints = self.recipe.search.constraints
        if self.recipe.search.quality != "metric":
            constraints = replace(constraints, retained=None)  # of the metric: not known of candidates
        ranked = by_merit(
            (self._candidate(each) for each in candidates if each.state == "complete"),
            constraints,
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


class PruningSearchStages(SearchStages, PruningStages):
    """The stages of a search whose finalists and hand-crafted shapes are narrowed from their teacher."""
