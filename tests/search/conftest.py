"""What the tests of the search share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal waits for the disk after each of its many lines; these tests outlive no power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
