"""How long the Hub is waited for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hf_kdnas.errors import InvalidInput
from hf_kdnas.hub.session import open_session, patiently
from hf_kdnas.progress import Narrator

sys.path.insert(0, str(Path(__file__).parent))
from loopback_hub import Hub


def ask() -> str:
    return patiently("asking who I am", open_session().whoami, Narrator(speaks=False))["name"]


@pytest.mark.parametrize(
    ("patience", "seconds"),
    [("0", 1.0), ("7", 7.0), ("9999", 300.0), ("Sun, 22 Nov 2026 08:00:00 GMT", 1.0)],
)
def test_it_is_given_the_time_that_it_asks_for_up_to_a_limit(
    online: Hub, slept: list[float], patience: str, seconds: float
) -> None:
    ask()  # in a process's first session huggingface_hub asks something of its own
    online.patience = patience
    online.begin((0, "429"))
    assert ask() == "someone"
    assert slept == [seconds]


def test_it_is_given_ever_more_time_and_up_in_the_end(online: Hub, slept: list[float]) -> None:
    ask()
    online.begin((0, "500"), persistent=True)
    with pytest.raises(InvalidInput, match=r"the Hub says: .*500"):
        ask()
    assert slept == [1.0, 2.0, 4.0, 8.0]
