"""An episode's candidates, spread over two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_kdnas.run import read_json

TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def _search(
    project: Path, launcher: list[str], *settings: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*launcher, "-m", "hf_kdnas", "search", "--config", str(project / "recipe.yaml"), *settings],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_two_ranks_find_what_one_does(tiny_project: Path) -> None:
    done = _search(tiny_project, [sys.executable])
    assert done.returncode == 0, done.stderr
    alone = read_json(tiny_project / "run" / "results.json")
    for path in (tiny_project / "run").rglob("candidates/*.json"):
        path.unlink()
    (tiny_project / "run").rename(tiny_project / "alone")

    done = _search(tiny_project, TWO_RANKS, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    together = read_json(tiny_project / "run" / "results.json")
    # Candidates are trained by one rank each, from the same weights on the same rows.
    tried = ("architecture", "episode", "quality")
    assert [[each[name] for name in tried] for each in together["candidates"]] == [
        [each[name] for name in tried] for each in alone["candidates"]
    ]
    assert together["environment"]["processes"] == "2"
    assert alone["environment"]["processes"] == "1"


def test_a_batch_that_ranks_do_not_divide_is_refused_before_any_work(tiny_project: Path) -> None:
    odd = ("--distillation.training.batch_size", "15")
    done = _search(tiny_project, TWO_RANKS, *odd, ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    assert "distillation.training.batch_size: got 15; it is shared by the 2 processes" in done.stderr
    assert not (tiny_project / "run").exists()


def test_ranks_that_do_not_know_of_each_other_are_refused(tiny_project: Path) -> None:
    done = _search(tiny_project, [sys.executable], WORLD_SIZE="2")
    assert done.returncode == 2
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu" in done.stderr
    assert "Traceback" not in done.stderr
