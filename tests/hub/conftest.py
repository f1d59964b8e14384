"""A made-up results.json, and a Hub on the loopback."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, file_download

sys.path.insert(0, str(Path(__file__).parent))
from loopback_hub import Hub


@pytest.fixture
def results() -> dict[str, Any]:
    """As `hf_kdnas.results.collect_results` makes them; the numbers are invented."""
    return json.loads((Path(__file__).parents[1] / "report" / "results.json").read_text(encoding="utf-8"))


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A server without repositories."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()
        assert server.errors == []


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long this process would have slept, each time; it doesn't."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def online(hub: Hub, slept: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The same, as the Hub of this process, with a token that may write, and without waiting.

    huggingface_hub reads the environment when it is imported, which is long ago.
    """
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_writer0000")
    _forget_sessions()
    yield hub
    _forget_sessions()


def _forget_sessions() -> None:
    """Sessions know whether they are offline: in huggingface_hub 0 those of requests."""
    import huggingface_hub.utils._http as http

    getattr(http, "reset_sessions", getattr(http, "close_session", None))()


@pytest.fixture
def run_dir(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def environment(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of another process that has this Hub, and a home of its own."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_TOKEN": "hf_writer0000",
    }
