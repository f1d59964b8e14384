from __future__ import annotations

import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from hf_kdnas.errors import InvalidInput, MissingPackage
from hf_kdnas.search import storage
from hf_kdnas.search.driver import SearchDriver, _Asked
from hf_kdnas.search.study import ask_episode, is_running, open_study, tried_architectures

sys.path.insert(0, str(Path(__file__).parent))
from searching import SPACE, ask, tell


@pytest.mark.parametrize("url", ["nonsense://user:secret@host/runs", "nonsense://host/runs?password=secret"])
def test_a_url_that_leads_nowhere_is_shown_without_its_password(url: str):
    with pytest.raises(InvalidInput, match=r"search\.storage.*nonsense://host/runs") as caught:
        open_study(url, "search")
    assert "secret" not in str(caught.value)


def test_a_missing_database_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingPackage, match=r"hf-kdnas\[postgres\]"):
        open_study("postgresql://user:secret@host/runs", "search")


def silence(file):
    """Let an hour pass since all signs of life in a database."""
    with closing(sqlite3.connect(file)) as database, database:
        changed = database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
        assert changed.rowcount > 0


def test_what_a_dead_launch_was_trying_can_be_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "BEAT", 1)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    dying, silent = open_study(url, "search"), open_study(url, "search")
    lost, kept = ask(dying, "random"), ask(silent, "random")
    beaten = threading.Semaphore(0)

    def running():
        beaten.release()
        return [trial for trial, _ in lost]

    with storage.heartbeats(dying, running):
        for _ in range(2):  # by the second one the first is written
            assert beaten.acquire(timeout=60)
    silence(tmp_path / "study.db")
    later = open_study(url, "search")
    optuna.storages.fail_stale_trials(later)
    # Of the other launch nothing was ever heard: it may be of a version without signs of life.
    assert tried_architectures(later) == {shape for _, shape in kept}


def test_an_episode_begins_without_the_dead_of_earlier_launches(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = open_study(url, "search")
    [(trial, shape)] = ask(study, "random", candidates=1)
    storage.beat(study, [trial])
    silence(tmp_path / "study.db")
    ask_episode(study, SPACE, 1, optuna.samplers.RandomSampler(seed=0))
    assert not is_running(study, trial)
    # The launch was not dead, but slow: it tells what it found all the same.
    driver = SearchDriver(
        space=SPACE,
        section=None,
        sampler="random",
        seed=0,
        folder=tmp_path,
        name="search",
        latencies=None,
        mini_kd=None,
        processes=None,
        narrator=None,
        track=None,
    )
    driver._running[shape] = trial
    again = driver._trial(study, _Asked(shape, None, False))
    assert again.number != trial.number
    assert tell(study, again, shape, 0).architecture == shape


def test_a_journal_needs_no_signs_of_life(tmp_path):
    study = open_study(tmp_path / "study.log", "search")
    trials = [trial for trial, _ in ask(study, "random")]
    storage.beat(study, trials)
    with storage.heartbeats(study, lambda: trials):
        assert all(is_running(study, trial) for trial in trials)
