"""The search: episodes of candidates, asked, measured, distilled for a short while and told.

Rank 0 asks, measures latencies and tells; an episode's candidates are distilled by all ranks, each its
own. What a candidate reached is written down at once, so that an episode that was interrupted goes on
with those that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from accelerate.utils import gather_object

from hf_kdnas.architecture import Architecture
from hf_kdnas.processes import from_first
from hf_kdnas.run import read_json, write_json
from hf_kdnas.search.reward import reward
from hf_kdnas.search.sampler import make_sampler
from hf_kdnas.search.storage import beat, heartbeats
from hf_kdnas.search.study import (
    Candidate,
    ask_episode,
    ask_member,
    finished_candidates,
    is_running,
    open_study,
    sampler_remarks,
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


# The study's journal file in the search's folder, where no storage URL is given.
JOURNAL = "study.log"


@dataclass(frozen=True)
class _Asked:
    """A candidate of an episode.

    Attributes:
        architecture: The shape.
        predicted_reward: What the sampler expected.
        rejected: Whether it breaks a constraint on latency.
        remarks: What the sampler noted with it.
    """

    architecture: Architecture
    predicted_reward: float | None
    rejected: bool
    remarks: dict[str, Any] = field(default_factory=dict)


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
    track: Callable[[Candidate], None]
    _running: dict[Architecture, optuna.Trial] = field(default_factory=dict, init=False)

    def run(self) -> list[Candidate]:
        """Run the episodes that are missing, and return the candidates of all."""
        study = self._open() if self.processes.is_main_process else None
        alive = heartbeats(study, self._running.values) if study else nullcontext()
        done, episodes, size = self._episodes_done(study), self.section.episodes, self.section.candidates
        what = f"search ({self.sampler})"
        with alive, self.narrator.loop(what, episodes * size, done * size) as progress:
            for episode in range(done, episodes):
                if not self._run_episode(study, episode, progress):
                    self.narrator.say("  every architecture of the space has been tried")
                    break
            progress(episodes * size, self._best(study))
        return from_first(finished_candidates(study) if study else [], self.processes)

    def _open(self) -> optuna.Study:
        self.folder.mkdir(parents=True, exist_ok=True)
        return open_study(self.section.storage or self.folder / JOURNAL, self.name)

    def _episodes_done(self, study: optuna.Study | None) -> int:
        """Episodes that were told to the end."""
        done = 0
        if study is not None:
            told = {candidate.architecture for candidate in finished_candidates(study)}
            while (asked := self._noted(done)) and told.issuperset(each.architecture for each in asked):
                done += 1
        return int(from_first(done, self.processes))

    def _best(self, study: optuna.Study | None) -> str:
        candidates = finished_candidates(study) if study else []
        rewards = [(each.reward, each.architecture.key) for each in candidates if each.reward is not None]
        if not rewards:
            return ""
        best, key = max(rewards)
        return f"best {key}, reward {best:.4f}"

    def _run_episode(
        self, study: optuna.Study | None, episode: int, progress: Callable[[int, str], None]
    ) -> bool:
        """Ask, distil and tell one episode; False if there was nothing left to ask."""
        best, before = self._best(study), episode * self.section.candidates
        progress(before, best)
        asked: list[_Asked] = from_first(self._ask(study, episode) if study else [], self.processes)
        chosen = [each.architecture for each in asked if not each.rejected]

        def begins(number: int, architecture: Architecture) -> None:
            progress(before + number, f"{architecture.key}  {best}".rstrip())

        qualities = self._distil(chosen, begins)
        if study:
            self._tell(study, asked, qualities, episode)
        return bool(chosen)

    def _ask(self, study: optuna.Study, episode: int) -> list[_Asked]:
        """Candidates of an episode; those that break a constraint on latency are measured, not trained.

        What was asked is noted before anything is told: an episode that was interrupted is the same
        one again.
        """
        if self._note(episode).exists():
            return self._noted(episode)
        asked: list[_Asked] = []
        while missing := self.section.candidates - sum(not each.rejected for each in asked):
            sampler = make_sampler(self.sampler, self.space, self.seed, study, self.section)
            trials = ask_episode(study, self.space, missing, sampler)
            if not trials:
                break
            beat(study, [trial for trial, _ in trials])
            for trial, architecture in trials:
                expected = trial.user_attrs.get("predicted_reward")
                rejected = not self.latencies.within(architecture, self.section.constraints)
                asked.append(_Asked(architecture, expected, rejected, sampler_remarks(study, trial)))
                self._running[architecture] = trial
        self._write_note(episode, asked)
        return asked

    def _note(self, episode: int) -> Path:
        return self.folder / "episodes" / f"{episode:03}.json"

    def _write_note(self, episode: int, asked: Sequence[_Asked]) -> None:
        write_json(
            self._note(episode),
            [[each.architecture.key, each.predicted_reward, each.rejected, each.remarks] for each in asked],
        )

    def _noted(self, episode: int) -> list[_Asked]:
        noted = read_json(self._note(episode)) or []
        return [_Asked(Architecture.parse(key), *rest) for key, *rest in noted]

    def _distil(
        self, candidates: Sequence[Architecture], begins: Callable[[int, Architecture], None]
    ) -> dict[Architecture, float]:
        """Quality of each candidate; each rank distils its own, and says which one begins."""
        rank, ranks = self.processes.process_index, self.processes.num_processes
        mine = candidates[rank::ranks]
        for number, architecture in enumerate(mine):
            if self._known(architecture) is None:
                begins(number * ranks, architecture)
                write_json(self._reached(architecture), {"quality": self.mini_kd.reached(architecture)})
        return dict(gather_object([(each, self._known(each)) for each in mine]))

    def _reached(self, architecture: Architecture) -> Path:
        return self.folder / "candidates" / f"{architecture.key}.json"

    def _known(self, architecture: Architecture) -> float | None:
        note = read_json(self._reached(architecture))
        return None if note is None else float(note["quality"])

    def _tell(
        self,
        study: optuna.Study,
        asked: Sequence[_Asked],
        qualities: Mapping[Architecture, float],
        episode: int,
    ) -> None:
        """Tell an episode's outcome, less what an interrupted launch told already."""
        told = {candidate.architecture for candidate in finished_candidates(study)}
        for each in asked:
            if each.architecture in told:
                continue
            trial = self._trial(study, each)
            report = self.latencies(each.architecture)
            if each.rejected:
                self.track(tell_rejected(study, trial, "latency", report, episode))
                continue
            quality = qualities[each.architecture]
            self.track(
                tell_candidate(
                    study,
                    trial,
                    quality=quality,
                    latency_ms=report.median_ms,
                    ratio=report.ratio,
                    reward=reward(quality, report.ratio, self.section.alpha, self.section.beta),
                    episode=episode,
                )
            )

    def _trial(self, study: optuna.Study, asked: _Asked) -> optuna.Trial:
        """The running trial of a candidate; a new one where an interrupted launch asked for it."""
        running = self._running.pop(asked.architecture, None)
        if running is not None and is_running(study, running):
            return running
        return ask_member(study, self.space, asked.architecture, asked.predicted_reward, asked.remarks)
