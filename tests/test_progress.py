"""What a person sees of a long run, where no terminal is."""

from __future__ import annotations

import re

import pytest

from hf_kdnas import cli, progress
from hf_kdnas.progress import Narrator


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed, to be set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_time_left_is_of_what_this_launch_did(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Narrator().loop("training", 100, done=90) as move:
        move(90, "")
        clock[0] = 20.0
        move(92, "loss 0.5")
        clock[0] = 100.0
        move(100, "")
    assert capsys.readouterr().err.splitlines() == [
        "  training: 92 of 100, 80 s left  loss 0.5",
        "  training: 100 of 100, 0 s left",
    ]


def test_a_search_names_its_candidate_and_the_best_so_far(
    tiny_project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Narrator, "SECONDS_BETWEEN_LINES", 0)
    settings = ("--search.finalists", "1", "--search.baselines", "[]")
    assert cli.main(["search", "--config", str(tiny_project / "recipe.yaml"), *settings]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "search (kdnas)" in line]
    candidate = r"\dL-\d+H-\d+F-\d+A-gelu"
    best = rf"best {candidate}, reward \d\.\d+"
    for number, note in ((1, candidate), (4, f"{candidate}  {best}"), (6, best)):
        line = [each for each in lines if f": {number} of 6, " in each][-1]
        assert re.search(rf" s left  {note}$", line)
