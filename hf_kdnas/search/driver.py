"""The search: episodes of candidates, asked, measured, distilled for a short while and told.

Rank 0 asks, measures latencies and tells; an episode's candidates are distilled by all ranks, each its
own. What a candidate reached is written down at once, so that an episode that was interrupted goes on
with those that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from accelerate.utils import broadcast_object_list, gather_object

from hf_kdnas.architecture import Architecture
from hf_kdnas.run import read_json, write_json
from hf_kdnas.search.reward import reward
from hf_kdnas.search.sampler import make_sampler
from hf_kdnas.search.study import (
    Candidate,
    ask_episode,
    finished_candidates,
    open_study,
    tell_candidate,
    tell_rejected,
)

if TYPE_CHECKING:
    from accelerate import PartialState

    from hf_kdnas.progress import Narrator
    from hf_kdnas.recipe import SearchSection
    from hf_kdnas.search.latencies import ShapeLatencies
    from hf_kdnas.search.mini_kd import MiniKD
    from hf_kdnas.space import SearchSpace


@dataclass(frozen=True)
class SearchDriver:
    """Runs the episodes of one study.

    Attributes:
        space: The members to choose from.
        section: The recipe's search.
        sampler: Name of the sampler.
        seed: The run's seed.
        folder: Keeps what candidates reached, and the study's journal.
        name: The study's name.
        latencies: Measures shapes.
        mini_kd: Distils candidates.
        processes: The ranks of this launch.
        narrator: Tells how it goes on.
        track: Called with each candidate that is told, for trackers.
    """

    space: SearchSpace
    section: SearchSection
    sampler: str
    seed: int
    folder: Path
    name: str
    latencies: ShapeLatencies
    mini_kd: MiniKD
    processes: PartialState
    narrator: Narrator
    track: Callable[[Candidate], None] = lambda candidate: None

    def run(self) -> list[Candidate]:
        """Run the episodes that are missing, and return the candidates of all."""
        study = self._open() if self.processes.is_main_process else None
        with self.narrator.loop(f"search ({self.sampler})", self.section.episodes) as progress:
            for episode in range(self._episodes_done(study), self.section.episodes):
                progress(episode, self._best(study))
                if not self._run_episode(study, episode):
                    self.narrator.say("  every architecture of the space has been tried")
                    break
            progress(self.section.episodes, self._best(study))
        return self._shared(finished_candidates(study) if study else None)

    def _open(self) -> optuna.Study:
        self.folder.mkdir(parents=True, exist_ok=True)
        return open_study(self.section.storage or self.folder / "study.log", self.name)

    def _episodes_done(self, study: optuna.Study | None) -> int:
        done = None
        if study is not None:
            episodes = [candidate.episode for candidate in finished_candidates(study)]
            done = max(episodes, default=-1) + 1
        return int(self._shared(done))

    def _best(self, study: optuna.Study | None) -> str:
        rewards = [each for each in finished_candidates(study) if each.reward is not None] if study else []
        if not rewards:
            return ""
        best = max(rewards, key=lambda candidate: candidate.reward)
        return f"best {best.architecture.key}, reward {best.reward:.4f}"

    def _run_episode(self, study: optuna.Study | None, episode: int) -> bool:
        """Ask, distil and tell one episode; False if there was nothing left to ask."""
        trials = self._ask(study, episode) if study else []
        candidates: list[Architecture] = self._shared([architecture for _, architecture in trials])
        if not candidates:
            return False
        qualities = self._distil(candidates)
        if study:
            for trial, architecture in trials:
                self._tell(study, trial, architecture, qualities[architecture], episode)
        return True

    def _ask(self, study: optuna.Study, episode: int) -> list[tuple[optuna.trial.Trial, Architecture]]:
        """Candidates of an episode that keep to the constraints on latency, measured before any trains."""
        wanted = self.section.candidates
        chosen: list[tuple[optuna.trial.Trial, Architecture]] = []
        while len(chosen) < wanted:
            sampler = make_sampler(self.sampler, self.space, self.seed, study, self.section)
            asked = ask_episode(study, self.space, wanted - len(chosen), sampler)
            if not asked:
                break
            for trial, architecture in asked:
                if self.latencies.within(architecture, self.section.constraints):
                    chosen.append((trial, architecture))
                else:
                    tell_rejected(study, trial, "latency", self.latencies(architecture), episode)
        return chosen

    def _distil(self, candidates: Sequence[Architecture]) -> dict[Architecture, float]:
        """Quality of each candidate; each rank distils its own."""
        rank, ranks = self.processes.process_index, self.processes.num_processes
        mine = candidates[rank::ranks]
        found = [(each, self._known(each)) for each in mine]
        for architecture, quality in self.mini_kd.run([each for each, known in found if known is None]):
            write_json(self._note(architecture), {"quality": quality})
        return dict(gather_object([(each, self._known(each)) for each in mine]))

    def _note(self, architecture: Architecture) -> Path:
        return self.folder / "candidates" / f"{architecture.key}.json"

    def _known(self, architecture: Architecture) -> float | None:
        note = read_json(self._note(architecture))
        return None if note is None else float(note["quality"])

    def _tell(
        self, study: optuna.Study, trial: Any, architecture: Architecture, quality: float, episode: int
    ) -> None:
        report = self.latencies(architecture)
        value = reward(quality, report.ratio, self.section.alpha, self.section.beta)
        tell_candidate(
            study,
            trial,
            quality=quality,
            latency_ms=report.median_ms,
            ratio=report.ratio,
            reward=value,
            episode=episode,
        )
        self.track(finished_candidates(study)[-1])

    def _shared(self, value: Any) -> Any:
        """What rank 0 has, on every rank."""
        if self.processes.num_processes == 1:
            return value
        return broadcast_object_list([value])[0]
