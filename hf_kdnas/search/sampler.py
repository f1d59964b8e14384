"""Samplers: who proposes the candidates of an episode.

A sampler is made anew for every call of `ask_episode`, with a seed from the run's seed and the number
of architectures tried, and learns what it knows from the study alone: an interrupted search, or a launch
that joins later, needs nothing else.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.resources import import_own
from hf_kdnas.search.controller import NOTHING, RewardController, States
from hf_kdnas.search.study import finished_candidates, tried_architectures
from hf_kdnas.space import SearchSpace

# Unseen members that the controller scores; a larger space is sampled.
POOL = 100_000


class Exploration(Protocol):
    """What samplers read of a recipe's search."""

    @property
    def candidates(self) -> int:
        """Architectures tried in an episode."""

    @property
    def epsilon(self) -> float:
        """Part of the first episode's candidates drawn at random."""

    @property
    def epsilon_step(self) -> float:
        """By how much that part falls in each episode."""

    @property
    def epsilon_floor(self) -> float:
        """Where it stops falling."""


def make_sampler(
    name: str, space: SearchSpace, seed: int, study: optuna.Study, section: Exploration
) -> BaseSampler:
    """The sampler for the next call of `ask_episode`.

    Args:
        name: `kdnas`, `random`, `tpe`, `nsga2`, or an Optuna sampler as `package.module:Class`.
        space: The members to choose from.
        seed: The run's seed.
        study: What was found so far.
        section: The recipe's search.

    Raises:
        InvalidInput: If there is no such sampler.
    """
    # What is being tried counts too, so that asking again within an episode draws others.
    draw = random.Random(f"{seed} {len(tried_architectures(study))}").getrandbits(32)
    if name == "kdnas":
        return KDNASSampler(
            space,
            seed,
            draw,
            epsilon=section.epsilon,
            epsilon_step=section.epsilon_step,
            epsilon_floor=section.epsilon_floor,
        )
    if name == "random":
        return RandomSampler(seed=draw)
    if name == "tpe":
        return TPESampler(seed=draw)
    if name == "nsga2":
        # A generation is an episode.
        return _NSGAII(seed=draw, population_size=max(2, section.candidates))
    return _imported(name, draw)


class _NSGAII(NSGAIISampler):
    """NSGA-II that gives the same children again after an interruption."""

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The parents in the order in which Optuna reads them back from the study later."""
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


def check_sampler(name: str) -> None:
    """See that a sampler of the user's own can be imported.

    Raises:
        InvalidInput: If it can't, or is no sampler.
    """
    if ":" in name:
        _sampler_class(name)


def _imported(path: str, seed: int) -> BaseSampler:
    found = _sampler_class(path)
    options = {"seed": seed} if "seed" in inspect.signature(found).parameters else {}
    return found(**options)


def _sampler_class(path: str) -> type[BaseSampler]:
    try:
        found = import_own(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise _unknown(path, str(error)) from error
    if not (inspect.isclass(found) and issubclass(found, BaseSampler)):
        raise _unknown(path, "it is not a class derived from optuna.samplers.BaseSampler")
    return found


def _unknown(path: str, why: str) -> InvalidInput:
    return InvalidInput(
        "search.sampler",
        path,
        f"allowed are kdnas, random, tpe, nsga2 or package.module:Class; {why}",
        "Choose one of these, or install the package that holds it.",
    )


class KDNASSampler(BaseSampler):
    """KD-NAS' search (arXiv 2303.09639) as an Optuna sampler.

    A falling part of an episode's candidates is drawn at random; the others are those whose reward the
    controller predicts to be the highest. The controller is trained by replaying the finished episodes.
    Never proposes a member twice.

    Args:
        space: The members to choose from.
        seed: Decides the controller's first weights; the same over a run.
        draw: Decides the random candidates; another one for every call of `ask_episode`.
        epsilon: Part of the first episode's candidates drawn at random.
        epsilon_step: By how much that part falls in each episode.
        epsilon_floor: Where it stops falling.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        draw: int,
        *,
        epsilon: float = 1.0,
        epsilon_step: float = 0.05,
        epsilon_floor: float = 0.05,
    ) -> None:
        self._space = space
        self._seed = seed
        self._rng = random.Random(draw)
        self._independent = RandomSampler(seed=draw)
        self._schedule = (epsilon, epsilon_step, epsilon_floor)
        self._epsilon: float | None = None
        self._predictions: dict[Architecture, float] = {}
        self._asked = 0

    def predicted_reward(self, architecture: Architecture) -> float | None:
        """The reward that the controller expects, or None before it has learned anything."""
        return self._predictions.get(architecture)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All dimensions: an architecture is chosen as a whole."""
        return dict(self._space.distributions())

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next architecture, as values of the dimensions; nothing when all have been tried."""
        tried = tried_architectures(study)
        unseen = [member for member in self._space if member not in tried]
        if self._epsilon is None:
            self._epsilon = self._learn(trained_episodes(study), unseen)
        if not unseen:
            return {}
        scored = [member for member in unseen if member in self._predictions]
        if self._explores() or not scored:
            return self._space.values_of(self._rng.choice(unseen))
        return self._space.values_of(max(scored, key=self._predictions.__getitem__))

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A random value, for a parameter that `sample_relative` left out."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _learn(self, episodes: Sequence[Episode], unseen: Sequence[Architecture]) -> float:
        """Score the unseen members by what the episodes taught, and give this episode's epsilon."""
        if episodes and unseen:
            pool = self._rng.sample(unseen, POOL) if len(unseen) > POOL else unseen
            self._predictions = predict_rewards(self._space, episodes, pool, self._seed)
        first, step, floor = self._schedule
        return max(floor, first - step * len(episodes))

    def _explores(self) -> bool:
        """Whether the next candidate is a random one; of the first N, int(epsilon * N) are."""
        assert self._epsilon is not None
        # The small term keeps 0.7 * 20 from being 13.
        before, after = (int(self._epsilon * count + 1e-9) for count in (self._asked, self._asked + 1))
        self._asked += 1
        return after > before


Episode = list[tuple[Architecture, float]]


def trained_episodes(study: optuna.Study) -> list[Episode]:
    """Architectures and rewards of the candidates that were trained, by episode."""
    trained = sorted(
        (candidate.episode, candidate.number, candidate.architecture, candidate.reward)
        for candidate in finished_candidates(study)
        if candidate.reward is not None
    )
    return [
        [(architecture, reward) for _, _, architecture, reward in group]
        for _, group in groupby(trained, key=lambda entry: entry[0])
    ]


def predict_rewards(
    space: SearchSpace, episodes: Sequence[Episode], members: Sequence[Architecture], seed: int
) -> dict[Architecture, float]:
    """Train a controller on the episodes, in their order, and let it score members.

    Architectures that are no longer in the space (its constraints may have changed) are left out.
    """
    controller = RewardController([len(values) for values in space.dimensions.values()], seed)
    previous = best = None
    for episode in episodes:
        known = [(architecture, reward) for architecture, reward in episode if architecture in space]
        if not known:
            continue
        states = _states(space, previous, best, [architecture for architecture, _ in known])
        controller.fit_episode(states, [reward for _, reward in known])
        previous = max(known, key=lambda entry: entry[1])
        best = previous if best is None else max(best, previous, key=lambda entry: entry[1])
    predicted = controller.predict(_states(space, previous, best, members))
    return dict(zip(members, predicted.tolist(), strict=True))


def _states(
    space: SearchSpace,
    previous: tuple[Architecture, float] | None,
    best: tuple[Architecture, float] | None,
    candidates: Sequence[Architecture],
) -> States:
    """The controller's input, (candidates, 3, dimensions): previous best, best so far, candidate."""
    context = [_indices(space, entry and entry[0]) for entry in (previous, best)]
    return np.array([[*context, _indices(space, candidate)] for candidate in candidates], dtype=np.int64)


def _indices(space: SearchSpace, architecture: Architecture | None) -> list[int]:
    if architecture is None:
        return [NOTHING] * len(space.dimensions)
    values = space.values_of(architecture)
    return [1 + allowed.index(values[name]) for name, allowed in space.dimensions.items()]
