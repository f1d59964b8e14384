"""A search in a tracker's own files."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import PartialState
from tensorboardX.proto.event_pb2 import Event

from hf_kdnas import cli
from hf_kdnas.run import read_json
from hf_kdnas.search.trackers import Trackers


def _events(folder: Path) -> Iterator[tuple[int, str, float]]:
    """Step, name and value of what TensorBoard would show."""
    for path in sorted(folder.rglob("events.out.tfevents*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += length + 16
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value


def test_candidates_and_the_training_of_finalists_are_tracked(tiny_project: Path) -> None:
    few = ("--search.episodes", "1", "--search.finalists", "1", "--search.baselines", "[]")
    config = ("--config", str(tiny_project / "recipe.yaml"))
    assert cli.main(["search", *config, *few, "--report_to", "[tensorboard]"]) == 0
    run = tiny_project / "run"
    told = [(step, value) for step, name, value in _events(run) if name == "search/quality"]
    wanted = [each["quality"] for each in read_json(run / "results.json")["candidates"]]
    assert [step for step, _ in told] == [0, 1, 2]
    assert [value for _, value in told] == pytest.approx(wanted)
    assert any(name == "train/loss" for _, name, _ in _events(run))


def test_only_one_process_begins_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartialState, "is_main_process", False)
    with Trackers(["tensorboard"], "tiny", tmp_path):
        pass
    assert not list(tmp_path.iterdir())
