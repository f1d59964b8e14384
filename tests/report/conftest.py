"""A made-up results.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def results() -> dict[str, Any]:
    """As `hf_kdnas.results.collect_results` makes them; the numbers are invented."""
    return json.loads(Path(__file__).with_name("results.json").read_text(encoding="utf-8"))
