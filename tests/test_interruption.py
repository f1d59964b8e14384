"""A search that is killed in every stage ends like one that was left alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_kdnas.run import read_json

# Where a launch kills itself, in the order of the stages, and at which call of the function.
KILLED_AT = {
    "teacher fine-tuning": ("transformers.Trainer._save_checkpoint", 2),
    "signals": ("hf_kdnas.distill.signals.Writer.finish", 1),
    "asking": ("hf_kdnas.search.driver.SearchDriver._write_note", 1),
    "an episode": ("hf_kdnas.search.mini_kd.MiniKD._distil", 2),
    "telling": ("hf_kdnas.search.driver.tell_candidate", 2),
    "final distillation": ("transformers.Trainer._save_checkpoint", 2),
    "a student's score": ("hf_kdnas.search.students.write_json", 1),
    "export": ("hf_kdnas.winner.quantise", 1),
    "the report": ("hf_kdnas.stages.render_report", 1),
}

LAUNCH = """
import importlib, os, sys
from hf_kdnas import cli

path, calls, recipe = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if path:
    owner, _, name = path.rpartition(".")
    try:
        owner = importlib.import_module(owner)
    except ImportError:
        module, _, kind = owner.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    original, seen = getattr(owner, name), 0

    def killing(*arguments, **options):
        global seen
        seen += 1
        if seen == calls:
            os.kill(os.getpid(), 9)
        return original(*arguments, **options)

    setattr(owner, name, killing)
sys.exit(cli.main(["search", "--config", recipe]))
"""


def _launch(project: Path, cache: Path, path: str = "", calls: int = 0) -> int:
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, path, str(calls), str(project / "recipe.yaml")],
        env={**os.environ, "KDNAS_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.slow
def test_killed_in_every_stage_it_finds_the_same_winner(tiny_project: Path, tmp_path: Path) -> None:
    assert _launch(tiny_project, tmp_path / "cache") == 0
    whole = read_json(tiny_project / "run" / "results.json")
    shutil.rmtree(tiny_project / "run")
    # The same latency store, but neither teacher nor signals.
    shutil.copytree(tmp_path / "cache" / "latency", tmp_path / "other" / "latency")

    for stage, (path, calls) in KILLED_AT.items():
        assert _launch(tiny_project, tmp_path / "other", path, calls) == -signal.SIGKILL, stage
        assert not (tiny_project / "run" / "results.json").exists() or stage == "the report", stage
    assert _launch(tiny_project, tmp_path / "other") == 0

    found = read_json(tiny_project / "run" / "results.json")
    for name in ("architecture", "quality", "selection_quality", "parameters"):
        assert found["student"][name] == whole["student"][name], name
    assert found["teacher"]["quality"] == whole["teacher"]["quality"]
    tried = ("architecture", "episode", "quality", "reward", "predicted_reward")
    assert [[each[name] for name in tried] for each in found["candidates"]] == [
        [each[name] for name in tried] for each in whole["candidates"]
    ]
