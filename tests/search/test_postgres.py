"""A study in PostgreSQL, which several launches share: on a real server, where one is given."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

import pytest
from optuna.trial import TrialState

from hf_kdnas.errors import InvalidInput
from hf_kdnas.search.study import finished_candidates, open_study

sys.path.insert(0, str(Path(__file__).parent))
from searching import ask, run_episode, tell

URL = os.environ.get("KDNAS_TEST_POSTGRES", "")

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(not URL, reason="no PostgreSQL server: set KDNAS_TEST_POSTGRES to its URL"),
]


@pytest.fixture
def name() -> str:
    return f"search-{uuid.uuid4()}"


def test_a_search_is_the_same_as_in_a_journal(name: str, tmp_path: Path) -> None:
    for episode in range(3):
        # Opened anew for each episode: what was told before comes from the storage alone.
        for storage in (URL, tmp_path / "study.log"):
            run_episode(open_study(storage, name), "kdnas", episode)
    kept = finished_candidates(open_study(URL, name))
    assert [each.episode for each in kept] == [0] * 6 + [1] * 6 + [2] * 6
    # Floats go through the database's double precision whole.
    assert kept == finished_candidates(open_study(tmp_path / "study.log", name))


def test_two_launches_try_different_candidates(name: str) -> None:
    first, second = open_study(URL, name), open_study(URL, name)
    mine, theirs = ask(first, "random"), ask(second, "random")
    assert {shape for _, shape in mine}.isdisjoint(shape for _, shape in theirs)
    for trial, shape in mine:
        tell(first, trial, shape, 0)
    # A launch that comes later leaves alone what another one is still trying.
    later = open_study(URL, name)
    running = later.get_trials(states=(TrialState.RUNNING,))
    assert [trial.user_attrs["architecture"] for trial in running] == [shape.key for _, shape in theirs]
    for trial, shape in theirs:
        tell(second, trial, shape, 0)
    assert len(finished_candidates(later)) == 12


def test_a_database_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(InvalidInput, match=r"search\.storage") as caught:
        open_study("postgresql://kdnas:secret@127.0.0.1:1/nothing", "search")
    assert "secret" not in str(caught.value)
