from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from scipy.stats import spearmanr

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.search.controller import RewardController
from hf_kdnas.search.sampler import KDNASSampler, make_sampler, predict_rewards, trained_episodes
from hf_kdnas.search.study import (
    ask_episode,
    ask_member,
    finished_candidates,
    open_study,
    sampler_remarks,
    tell_baseline,
    tell_rejected,
)
from hf_kdnas.space import SearchSpace

sys.path.insert(0, str(Path(__file__).parent))
from searching import SAMPLERS, SPACE, ask, quality, run_episode, section, tell, tried_keys


@pytest.fixture
def study(tmp_path):
    return open_study(tmp_path / "study.log", "search")


@pytest.mark.parametrize("name", SAMPLERS)
class TestEverySampler:
    """The contract of samplers, ours and Optuna's."""

    def test_candidates_are_legal_and_never_repeated(self, study, name):
        tried = [shape for episode in range(4) for shape in run_episode(study, name, episode)]
        assert len(tried) == 24
        assert len(set(tried)) == 24
        assert all(shape in SPACE for shape in tried)

    def test_the_whole_space_can_be_asked_for(self, study, name):
        space = SPACE.restricted({"small": lambda member: member.num_hidden_layers < 2})
        tried = [shape for episode in range(4) for shape in run_episode(study, name, episode, space=space)]
        assert sorted(tried) == list(space)
        assert run_episode(study, name, 9, space=space) == []

    def test_resuming_asks_as_an_uninterrupted_run_does(self, tmp_path, name):
        whole = tried_keys(tmp_path / "whole", name, 3)
        file = tmp_path / "parts" / "study.log"
        for episode in range(3):
            ask(open_study(file, "search"), name)  # interrupted before anything was told
            run_episode(open_study(file, "search"), name, episode)
        parts = finished_candidates(open_study(file, "search"))
        assert [candidate.architecture.key for candidate in parts] == whole

    def test_an_episode_that_was_noted_goes_on_as_it_would_have(self, tmp_path, name):
        whole = tried_keys(tmp_path / "whole", name, 4)
        file = tmp_path / "parts" / "study.log"
        for episode in range(4):
            study = open_study(file, "search")
            asked = ask(study, name)
            if episode == 1:
                noted = [
                    (shape, trial.user_attrs.get("predicted_reward"), sampler_remarks(study, trial))
                    for trial, shape in asked
                ]
                study = open_study(file, "search")  # interrupted before anything was told
                asked = [(ask_member(study, SPACE, *each), each[0]) for each in noted]
            for trial, shape in asked:
                tell(study, trial, shape, episode)
        assert [each.architecture.key for each in finished_candidates(study)] == whole

    def test_is_reproducible_in_another_process(self, tmp_path, name):
        here = tried_keys(tmp_path / "here", name, 2)
        script = Path(__file__).parent / "searching.py"
        there = subprocess.run(
            [sys.executable, "-W", "ignore", str(script), str(tmp_path / "there"), name, "2"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert json.loads(there.stdout) == here

    def test_another_seed_tries_others(self, tmp_path, name):
        assert tried_keys(tmp_path / "a", name, 1, seed=1) != tried_keys(tmp_path / "b", name, 1, seed=2)

    def test_a_rejected_candidate_is_not_asked_for_again(self, study, name):
        space = SPACE.restricted({"small": lambda member: member.num_hidden_layers < 2})
        rejected = []
        for trial, shape in ask(study, name, space=space):
            tell_rejected(study, trial, "speedup", SimpleNamespace(median_ms=9.0, ratio=0.9), 0)
            rejected.append(shape)
        others = [*run_episode(study, name, 0, space=space), *run_episode(study, name, 1, space=space)]
        assert len(others) == 12
        assert not set(others) & set(rejected)

    def test_goes_on_beside_hand_crafted_shapes(self, tmp_path, name):
        file = tmp_path / "study.log"
        outside = Architecture.parse("6L-768H-3072F-12A-gelu")
        tried = []
        for episode in range(3):
            study = open_study(file, "search")
            for number, shape in enumerate((outside, next(iter(SPACE)))):
                tell_baseline(study, f"{episode} {number}", shape, quality=0.9, latency_ms=1.0, ratio=0.1)
            tried += run_episode(study, name, episode)
        assert len(set(tried)) == 18
        assert [each.architecture for each in finished_candidates(study)] == tried
        assert trained_episodes(study)[0][0][0] == tried[0]

    def test_hand_crafted_shapes_do_not_change_what_the_first_episode_asks(self, study, tmp_path, name):
        shape = next(iter(SPACE))
        tell_baseline(study, "hand-crafted", shape, quality=0.9, latency_ms=1.0, ratio=0.1)
        assert [each.key for each in run_episode(study, name, 0)] == tried_keys(tmp_path / "plain", name, 1)


def greedy(space, seed=0):
    return KDNASSampler(space, seed, 5, epsilon=0.0, epsilon_step=0.0, epsilon_floor=0.0)


def test_the_controller_learns_from_the_search(study):
    for episode in range(6):
        run_episode(study, "random", episode, candidates=8)
    episodes = trained_episodes(study)
    tried = {shape for episode in episodes for shape, _ in episode}
    unseen = [shape for shape in SPACE if shape not in tried]
    predicted = predict_rewards(SPACE, episodes, unseen, seed=0)
    truth = [
        quality(shape) * (0.1 * shape.num_hidden_layers * shape.hidden_size / 48) ** -0.06 for shape in unseen
    ]
    assert spearmanr([predicted[shape] for shape in unseen], truth)[0] > 0.7


def test_without_exploration_the_highest_predictions_are_asked_for(study):
    run_episode(study, "random", 0, candidates=8)
    tried = {candidate.architecture for candidate in finished_candidates(study)}
    unseen = [shape for shape in SPACE if shape not in tried]
    predicted = predict_rewards(SPACE, trained_episodes(study), unseen, seed=3)
    asked = [shape for _, shape in ask_episode(study, SPACE, 5, greedy(SPACE, seed=3))]
    assert asked == sorted(unseen, key=predicted.__getitem__, reverse=True)[:5]


def test_predictions_are_kept_with_the_candidates(study):
    run_episode(study, "kdnas", 0)
    run_episode(study, "kdnas", 1)
    predictions = [candidate.predicted_reward for candidate in finished_candidates(study)]
    assert predictions[:6] == [None] * 6
    assert all(isinstance(each, float) for each in predictions[6:])


@pytest.mark.parametrize(("episodes", "randomly"), [(0, 20), (1, 14), (2, 8), (3, 2), (9, 2)])
def test_random_part_falls_to_its_floor(monkeypatch, study, episodes, randomly):
    for episode in range(episodes):
        run_episode(study, "random", episode, candidates=2)
    sampler = KDNASSampler(SPACE, 0, 5, epsilon=1.0, epsilon_step=0.3, epsilon_floor=0.1)
    explored = []
    explores = sampler._explores
    monkeypatch.setattr(sampler, "_explores", lambda: explored.append(explores()) or explored[-1])
    ask_episode(study, SPACE, 20, sampler)
    assert explored.count(True) == randomly
    assert len(explored) == 20


def test_a_large_space_is_scored_in_part(monkeypatch, study):
    monkeypatch.setattr("hf_kdnas.search.sampler.POOL", 4)
    run_episode(study, "random", 0)
    sampler = greedy(SPACE)
    asked = [shape for _, shape in ask_episode(study, SPACE, 6, sampler)]
    scored = [shape for shape in asked if sampler.predicted_reward(shape) is not None]
    assert scored == asked[:4]
    assert len(set(asked)) == 6


def test_candidates_outside_the_space_are_no_lesson(study):
    run_episode(study, "random", 0)
    smaller = SPACE.restricted({"deep": lambda member: member.num_hidden_layers > 2})
    asked = ask(study, "kdnas", space=smaller)
    assert all(shape in smaller for _, shape in asked)
    everything = trained_episodes(study)
    inside = [[entry for entry in everything[0] if entry[0] in smaller]]
    members = list(smaller)
    assert predict_rewards(smaller, everything, members, 0) == predict_rewards(smaller, inside, members, 0)


def test_the_controller_is_given_the_previous_best_the_best_so_far_and_the_candidate(monkeypatch):
    """Each as 1 + the places of its values in the dimensions, or zeros where there is none yet."""
    given, predict = [], RewardController.predict

    def predicting(controller, states):
        given.append(states.tolist())
        return predict(controller, states)

    def fitting(controller, states, rewards):
        given.append((states.tolist(), rewards))

    monkeypatch.setattr(RewardController, "predict", predicting)
    monkeypatch.setattr(RewardController, "fit_episode", fitting)
    a, b, c, d, e = (
        Architecture.parse(f"{key}-gelu")
        for key in ("1L-24H-32F-2A", "2L-32H-64F-4A", "3L-48H-128F-3A", "4L-24H-64F-3A", "4L-48H-32F-4A")
    )
    predict_rewards(SPACE, [[(a, 0.9), (b, 0.1)], [(c, 0.5), (d, 0.2)]], [e], 0)
    nothing, a, b, c, d, e = (
        *([0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [2, 2, 3, 2, 1]),
        *([3, 3, 2, 3, 1], [4, 1, 2, 2, 1], [4, 3, 3, 1, 1]),
    )
    assert given == [
        ([[nothing, nothing, a], [nothing, nothing, b]], [0.9, 0.1]),
        ([[a, a, c], [a, a, d]], [0.5, 0.2]),
        [[c, a, e]],
    ]


def test_kdnas_serves_a_plain_optuna_study():
    study = optuna.create_study(sampler=greedy(SPACE), directions=["maximize", "minimize"])

    def objective(trial):
        values = {
            name: trial.suggest_categorical(name, allowed) for name, allowed in SPACE.dimensions.items()
        }
        assert SPACE.architecture(values) is not None
        trial.suggest_float("unrelated", 0, 1)
        return 0.5, 1.0

    study.optimize(objective, n_trials=3)
    assert len(study.trials) == 3


def test_asking_twice_before_telling_draws_others(study):
    first, second = ask(study, "random"), ask(study, "random")
    assert not {shape for _, shape in first} & {shape for _, shape in second}
    assert len(study.trials) < 12 + 10  # the second draws are not the first ones again


def test_a_sampler_by_its_import_path_is_seeded(study):
    name = "optuna.samplers:RandomSampler"
    assert isinstance(make_sampler(name, SPACE, 0, study, section()), optuna.samplers.RandomSampler)
    first = [shape for _, shape in ask(study, name)]
    other = open_study(Path(study._storage._backend._file_path).with_name("other.log"), "search")
    assert [shape for _, shape in ask(other, name)] == first


def test_generations_of_nsga2_are_episodes(study):
    sampler = make_sampler("nsga2", SPACE, 0, study, section(candidates=8))
    assert sampler.population_size == 8


@pytest.mark.parametrize(
    "name", ["annealing", "nowhere.to_be_found:Sampler", "optuna.samplers:Absent", "json:JSONDecoder", ":"]
)
def test_an_unknown_sampler_is_named(study, name):
    with pytest.raises(InvalidInput, match=r"search\.sampler"):
        make_sampler(name, SPACE, 0, study, section())


def test_every_preset_can_be_searched(tmp_path):
    for preset in ("kd_nas", "autodistil-tiny"):
        study = open_study(tmp_path / preset, "search")
        for episode in range(2):
            for trial, shape in ask(study, "kdnas", space=SearchSpace.preset(preset)):
                tell(study, trial, shape, episode)
        assert len(finished_candidates(study)) == 12
