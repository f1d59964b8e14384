"""The search's memory: an Optuna study whose trials are architectures, asked and told by episodes.

What a trial found lies in its user attributes, and its two values are quality and latency. Trials that
were answered without training (an illegal draw, a repeat) and trials that were interrupted are told as
failed: no sampler looks at those, so an interrupted episode is asked again exactly as it was. Hand-crafted
shapes, which the space may not hold, are finished trials without parameters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.search.storage import database, is_database, journal, quiet
from hf_kdnas.space import SearchSpace

QUALITY, LATENCY = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE

# Draws of a sampler in a row that may be illegal or known already before one is drawn at random.
RETRIES = 10

_STATES: dict[TrialState, Literal["complete", "pruned"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
}


class Latency(Protocol):
    """What a latency report says of a shape."""

    @property
    def median_ms(self) -> float:
        """Median, in milliseconds."""

    @property
    def ratio(self) -> float | None:
        """Median relative to the teacher's, timed in the same run."""


@dataclass(frozen=True)
class Candidate:
    """A finished trial.

    Attributes:
        number: The trial's number in the study.
        episode: The episode that asked for it, from 0 on.
        architecture: What was tried.
        quality: On the selection split after the short distillation; None if it was not trained.
        latency_ms: Median latency, in milliseconds.
        ratio: Latency relative to the teacher's.
        reward: Of quality and ratio; None if it was not trained.
        predicted_reward: What the sampler expected, where it does.
        state: `complete`, or `pruned` if it was rejected.
        reason: Why it was rejected.
    """

    number: int
    episode: int
    architecture: Architecture
    quality: float | None
    latency_ms: float | None
    ratio: float | None
    reward: float | None
    predicted_reward: float | None
    state: Literal["complete", "pruned"]
    reason: str | None = None


def open_study(storage: str | Path, name: str) -> optuna.Study:
    """Open a study, or begin it.

    A journal file belongs to one launch at a time: what an interrupted launch left in it (a torn last
    line, a lock, trials that were running) is cleared away. In a database, which several launches may
    share, running trials are left alone, but for those that have given no sign of life for a while (`beat`).

    Args:
        storage: A journal file, or an Optuna storage URL.
        name: The study's name.

    Raises:
        InvalidInput: If the URL leads to no storage.
        MissingPackage: If the database's driver is not installed.
    """
    if is_database(storage):
        return _create(database(str(storage)), name)
    study = _create(journal(Path(storage)), name)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _create(storage: BaseStorage, name: str) -> optuna.Study:
    with quiet():
        return optuna.create_study(
            storage=storage, study_name=name, directions=(QUALITY, LATENCY), load_if_exists=True
        )


def ask_episode(
    study: optuna.Study, space: SearchSpace, n: int, sampler: BaseSampler
) -> list[tuple[Trial, Architecture]]:
    """Ask a sampler for architectures that were never tried.

    Illegal draws and repeats are answered without training. Where a sampler gives nothing new in
    RETRIES draws, a legal unseen member is drawn at random.

    Args:
        study: The study.
        space: The members to choose from.
        n: How many are wanted.
        sampler: Made for this call by `make_sampler`.

    Returns:
        Running trials with distinct members; fewer than wanted when the space is exhausted.

    Raises:
        InvalidInput: If the study was begun over other dimensions.
    """
    _check_dimensions(study, space)
    with quiet():
        optuna.storages.fail_stale_trials(study)
    seen = tried_architectures(study)
    asked: list[tuple[Trial, Architecture]] = []
    while len(asked) < n and any(member not in seen for member in space):
        trial, architecture = _ask_unseen(study, space, sampler, seen)
        predict = getattr(sampler, "predicted_reward", None)
        _name(trial, architecture, predict and predict(architecture))
        seen.add(architecture)
        asked.append((trial, architecture))
    return asked


def ask_member(
    study: optuna.Study,
    space: SearchSpace,
    architecture: Architecture,
    predicted_reward: float | None = None,
    remarks: Mapping[str, Any] | None = None,
) -> Trial:
    """A running trial of one member, without asking a sampler.

    Args:
        study: The study.
        space: The space that the member belongs to.
        architecture: The member.
        predicted_reward: What a sampler expected of it.
        remarks: What the sampler noted when it asked for it (`sampler_remarks`).
    """
    study.sampler = _Fixed(space.values_of(architecture))
    with quiet():
        trial = study.ask({**space.distributions()})
    _name(trial, architecture, predicted_reward)
    for name, value in (remarks or {}).items():
        study._storage.set_trial_system_attr(trial._trial_id, name, value)
    return trial


def sampler_remarks(study: optuna.Study, trial: Trial) -> dict[str, Any]:
    """What a sampler noted of its own with a trial, such as the generation that it belongs to."""
    return dict(study._storage.get_trial(trial._trial_id).system_attrs)


def is_running(study: optuna.Study, trial: Trial) -> bool:
    """Whether a trial can still be told: another launch may have taken it for dead."""
    return study._storage.get_trial(trial._trial_id).state == TrialState.RUNNING


def _name(trial: Trial, architecture: Architecture, predicted_reward: float | None) -> None:
    expected = {} if predicted_reward is None else {"predicted_reward": predicted_reward}
    _note(trial, {"architecture": architecture.key, **expected})


def _ask_unseen(
    study: optuna.Study, space: SearchSpace, sampler: BaseSampler, seen: set[Architecture]
) -> tuple[Trial, Architecture]:
    """A trial of a member that was not seen; there must be one."""
    distributions: dict[str, BaseDistribution] = {**space.distributions()}
    study.sampler = sampler
    for _ in range(RETRIES):
        with quiet():
            trial = study.ask(distributions)
        architecture = space.architecture(trial.params)
        if architecture is not None and architecture not in seen:
            return trial, architecture
        study.tell(trial, state=TrialState.FAIL)
    # What the sampler drew last, a matter of its seed, decides which one.
    rng = random.Random(f"{sorted(trial.params.items())} {len(seen)}")
    chosen = rng.choice([member for member in space if member not in seen])
    return ask_member(study, space, chosen), chosen


class _Fixed(BaseSampler):
    """Gives the values that it was made with."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._values[param_name]


def _check_dimensions(study: optuna.Study, space: SearchSpace) -> None:
    """Refuse a study over other dimensions: Optuna can't change a categorical parameter's values."""
    wanted = space.distributions()
    for trial in study.get_trials(deepcopy=False):
        for name, distribution in trial.distributions.items():
            if distribution != wanted.get(name):
                raise InvalidInput(
                    f"space.{name}",
                    list(space.dimensions.get(name, ())),
                    f"the study {study.study_name!r} was begun over {distribution}",
                    "Choose another output folder, or begin again with --overwrite.",
                )


def tell_candidate(
    study: optuna.Study,
    trial: Trial,
    *,
    quality: float,
    latency_ms: float,
    ratio: float,
    reward: float,
    episode: int,
) -> Candidate:
    """Tell what a candidate reached.

    A quality that is not a number (a correlation of constant predictions) is told as a rejection.

    Args:
        study: The study.
        trial: As asked by `ask_episode`.
        quality: On the selection split.
        latency_ms: Median, in milliseconds.
        ratio: Latency relative to the teacher's.
        reward: Of quality and ratio.
        episode: The episode that asked for it.

    Returns:
        The candidate as it is kept.
    """
    known: dict[str, Any] = {"latency_ms": latency_ms, "ratio": ratio, "episode": episode}
    if not math.isfinite(quality):
        return _reject(study, trial, "quality", known)
    _note(trial, {**known, "reward": reward})
    return _candidate(study.tell(trial, (quality, latency_ms)))


def tell_rejected(study: optuna.Study, trial: Trial, reason: str, report: Latency, episode: int) -> Candidate:
    """Tell that a candidate is not worth training, by the latency that was measured.

    Args:
        study: The study.
        trial: As asked by `ask_episode`.
        reason: The constraint that it breaks.
        report: What was measured.
        episode: The episode that asked for it.

    Returns:
        The candidate as it is kept.
    """
    return _reject(
        study, trial, reason, {"latency_ms": report.median_ms, "ratio": report.ratio, "episode": episode}
    )


def tell_baseline(
    study: optuna.Study,
    name: str,
    architecture: Architecture,
    *,
    quality: float,
    latency_ms: float,
    ratio: float,
) -> None:
    """Keep what a hand-crafted shape reached, once, beside the candidates.

    It need not belong to the space, it gives samplers no parameters to learn from, and the same shape may
    still be asked for. Tell it after the search: its quality is not that of a short distillation.

    Args:
        study: The study.
        name: The baseline's name; where it is kept already nothing changes.
        architecture: Its shape.
        quality: On the selection split, after the full distillation.
        latency_ms: Median, in milliseconds.
        ratio: Latency relative to the teacher's.
    """
    trials = study.get_trials(deepcopy=False)
    if any(trial.user_attrs.get("baseline") == name for trial in trials):
        return
    known = {"architecture": architecture.key, "latency_ms": latency_ms, "ratio": ratio}
    finite = math.isfinite(quality)
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.COMPLETE if finite else TrialState.PRUNED,
            values=[quality, latency_ms] if finite else None,
            # A value outside a parameter's distribution would break every later ask: none are given.
            user_attrs={"baseline": name, **known},
        )
    )


def _reject(study: optuna.Study, trial: Trial, reason: str, known: dict[str, Any]) -> Candidate:
    _note(trial, {**known, "reason": reason})
    return _candidate(study.tell(trial, state=TrialState.PRUNED))


def _note(trial: Trial, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        trial.set_user_attr(name, value)


def finished_candidates(study: optuna.Study) -> list[Candidate]:
    """All candidates that were trained or rejected, in the order in which they were asked."""
    return [_candidate(trial) for trial in _finished(study)]


def tried_architectures(study: optuna.Study) -> set[Architecture]:
    """Candidates that were trained or rejected, or are being tried (by another launch too)."""
    trials = study.get_trials(deepcopy=False, states=(*_STATES, TrialState.RUNNING))
    candidates = (trial.user_attrs for trial in trials if "baseline" not in trial.user_attrs)
    keys = {attributes["architecture"] for attributes in candidates if "architecture" in attributes}
    return {Architecture.parse(key) for key in keys}


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False, states=tuple(_STATES))
    return [trial for trial in trials if "episode" in trial.user_attrs]


def _candidate(trial: FrozenTrial) -> Candidate:
    attributes = trial.user_attrs
    return Candidate(
        number=trial.number,
        episode=attributes["episode"],
        architecture=Architecture.parse(attributes["architecture"]),
        quality=trial.values[0] if trial.state == TrialState.COMPLETE else None,
        latency_ms=attributes["latency_ms"],
        ratio=attributes["ratio"],
        reward=attributes.get("reward"),
        predicted_reward=attributes.get("predicted_reward"),
        state=_STATES[trial.state],
        reason=attributes.get("reason"),
    )
