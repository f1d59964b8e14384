from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from hf_kdnas.search.controller import NOTHING, RewardController

SIZES = (5, 4, 3)


def random_states(count, seed):
    """States of random candidates, with nothing before them."""
    rng = np.random.default_rng(seed)
    candidates = np.stack([rng.integers(1, size + 1, count) for size in SIZES], axis=-1)
    states = np.full((count, 3, len(SIZES)), NOTHING, dtype=np.int64)
    states[:, 2] = candidates
    return states


def additive_reward(states):
    """Each dimension adds its part, as in a real search by small amounts."""
    return (0.8 + states[:, 2] @ np.array([0.01, -0.004, 0.006])).tolist()


def fitted(seed=0, episodes=3):
    controller = RewardController(SIZES, seed)
    for episode in range(episodes):
        states = random_states(20, episode)
        controller.fit_episode(states, additive_reward(states))
    return controller


def test_sizes_and_optimiser_are_kd_nas():
    controller = RewardController(SIZES, 0)
    assert [table.embedding_dim for table in controller.embeddings] == [32, 32, 32]
    assert (controller.lstm.input_size, controller.lstm.hidden_size) == (3 * 32, 32)
    assert type(controller._optimiser) is torch.optim.RMSprop
    assert [group["lr"] for group in controller._optimiser.param_groups] == [1e-4]


def test_learns_an_additive_reward():
    unseen = random_states(60, 99)
    truth = additive_reward(unseen)
    before = spearmanr(RewardController(SIZES, 0).predict(unseen), truth)[0]
    after_one = spearmanr(fitted(episodes=1).predict(unseen), truth)[0]
    after_six = spearmanr(fitted(episodes=6).predict(unseen), truth)[0]
    assert before < after_one < after_six
    assert after_six > 0.9


def test_predicts_in_the_units_of_the_reward():
    states = random_states(20, 0)
    rewards = additive_reward(states)
    controller = RewardController(SIZES, 0, passes=1000)
    controller.fit_episode(states, rewards)
    assert np.abs(controller.predict(states) - rewards).mean() < 0.25 * np.std(rewards)


def test_the_states_before_the_candidate_count():
    states = random_states(4, 0)
    others = states.copy()
    others[:, :2] = 1
    controller = fitted()
    assert np.abs(controller.predict(states) - controller.predict(others)).min() > 0


def test_an_episode_of_one_candidate_is_learned():
    controller = RewardController(SIZES, 0)
    states = random_states(1, 0)
    controller.fit_episode(states, [0.7])
    assert np.isfinite(controller.predict(states)).all()


def test_scores_in_chunks_as_at_once(monkeypatch):
    controller, states = fitted(), random_states(30, 5)
    whole = controller.predict(states)
    monkeypatch.setattr("hf_kdnas.search.controller.CHUNK", 7)
    assert controller.predict(states) == pytest.approx(whole, abs=1e-6)


def test_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fitted(seed=8, episodes=1)
    assert torch.equal(torch.rand(4), expected)


def test_another_seed_gives_other_weights():
    states = random_states(5, 0)
    assert not np.allclose(fitted(seed=0).predict(states), fitted(seed=1).predict(states))


def digest():
    """All weights after three episodes, bit by bit."""
    weights = torch.cat([parameter.detach().flatten() for parameter in fitted().parameters()])
    return weights.numpy().tobytes().hex()[:4000] + str(weights.double().sum().item())


def test_replay_in_another_process_gives_the_same_weights(pytestconfig):
    shown = subprocess.run(
        [sys.executable, "-c", f"import runpy; print(runpy.run_path({__file__!r})['digest']())"],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == digest()
