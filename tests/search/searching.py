"""A search without training: the reward is computed from the shape. Shared by the tests of this folder."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from hf_kdnas.recipe import SearchSection
from hf_kdnas.search.reward import reward
from hf_kdnas.search.sampler import make_sampler
from hf_kdnas.search.study import ask_episode, finished_candidates, open_study, tell_candidate
from hf_kdnas.space import SearchSpace

SAMPLERS = ["kdnas", "random", "tpe", "nsga2"]

SPACE = SearchSpace(
    {
        "num_hidden_layers": (1, 2, 3, 4),
        "hidden_size": (24, 32, 48),
        "num_attention_heads": (2, 3, 4),
        "intermediate_size": (32, 64, 128),
        "hidden_act": ("gelu",),
    }
)


def section(candidates=6):
    return SearchSection(candidates=candidates, epsilon_step=0.25)


def quality(shape):
    """Deeper and wider is better, by ever less."""
    return 0.7 + 0.03 * math.log(shape.num_hidden_layers) + 0.02 * math.log(shape.hidden_size)


def ask(study, name, candidates=6, seed=1, space=SPACE):
    sampler = make_sampler(name, space, seed, study, section(candidates))
    return ask_episode(study, space, candidates, sampler)


def tell(study, trial, shape, episode):
    ratio = 0.1 * shape.num_hidden_layers * shape.hidden_size / 48
    return tell_candidate(
        study,
        trial,
        quality=quality(shape),
        latency_ms=10 * ratio,
        ratio=ratio,
        reward=reward(quality(shape), ratio),
        episode=episode,
    )


def run_episode(study, name, episode, **settings):
    asked = ask(study, name, **settings)
    for trial, shape in asked:
        tell(study, trial, shape, episode)
    return [shape for _, shape in asked]


def tried_keys(folder, name, episodes, **settings):
    """Keys of all candidates of a search in a folder, in the order of asking."""
    study = open_study(Path(folder) / "study.log", "search")
    for episode in range(episodes):
        run_episode(study, name, episode, **settings)
    return [candidate.architecture.key for candidate in finished_candidates(study)]


if __name__ == "__main__":
    print(json.dumps(tried_keys(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
