"""Teacher, student and data from a Hub on the loopback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_kdnas import cli

sys.path.insert(0, str(Path(__file__).parent))
from loopback_hub import Hub, put

# Without a data set of its own: neither csv nor student is in the recipe's folders.
RECIPE = """
name: again
teacher: {model: someone/tiny, revision: main}
data: {path: someone/reviews, revision: OLDER, text: text, labels: [rotten, fresh], max_length: 32,
       reporting_fraction: 0.2, selection_fraction: 0.2}
student: someone/tiny
student_revision: main
distillation: {training: {epochs: 1, learning_rate: 1e-3, batch_size: 16, precision: fp32}}
latency: {sequence_length: 16, rounds: 5, warmup: 1}
"""

# What the Hub's data sets say of themselves.
CONFIGURATIONS = b"""---
configs:
- config_name: cola
  data_files: rte/train.csv
- config_name: rte
  data_files: [{split: train, path: rte/train.csv}, {split: validation, path: rte/validation.csv}]
---
"""


@pytest.fixture
def project(hub: Hub, run_dir: Path, tiny_run: Path, tmp_path: Path) -> Path:
    """A recipe of nothing but names of the Hub."""
    student = run_dir / "student"
    files = {path.relative_to(student).as_posix(): path for path in student.rglob("*") if path.is_file()}
    put(hub, "someone/tiny", {name: path.read_bytes() for name, path in files.items()})
    reviews = (tiny_run.parent / "reviews.csv").read_bytes()
    older = put(hub, "someone/reviews", {"reviews.csv": reviews})
    put(hub, "someone/reviews", {"reviews.csv": b"text,label\na,fresh\n"})
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("OLDER", older))
    return path


def kdnas(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hf_kdnas", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_published_student_is_a_teacher_and_a_student_again(
    hub: Hub, environment: dict[str, str], project: Path, tmp_path: Path
) -> None:
    environment["KDNAS_CACHE"] = str(tmp_path / "cache")
    run = tmp_path / "again"
    done = kdnas(environment, "distill", "--config", str(project), "--output_dir", str(run))
    assert done.returncode == 0, done.stderr
    results = json.loads((run / "results.json").read_text())
    assert results["teacher"]["model"] == "someone/tiny"
    assert results["teacher"]["commit"] == hub.repos["someone/tiny"].references["main"]
    assert results["initialisation"] == "given"
    assert sum(results["task"]["rows"].values()) == 300  # of the older revision
    card = (run / "student" / "README.md").read_text()
    assert "base_model: someone/tiny\n" in card
    assert "datasets: someone/reviews\n" in card or "datasets:\n- someone/reviews\n" in card

    # What the cache has needs no Hub.
    hub.begin()
    environment["HF_HUB_OFFLINE"] = "1"
    again = str(tmp_path / "offline")
    done = kdnas(environment, "distill", "--config", str(project), "--output_dir", again)
    assert done.returncode == 0, done.stderr
    assert hub.requests == []


@pytest.mark.slow
def test_any_model_is_measured_and_evaluated_at_a_revision(
    hub: Hub, environment: dict[str, str], run_dir: Path, tmp_path: Path
) -> None:
    """A commit before the last, which holds no model any more; the tasks, too, are on the Hub."""
    student = run_dir / "student"
    files = {path.name: path.read_bytes() for path in student.iterdir() if path.is_file()}
    older = put(hub, "someone/tiny", files)
    put(hub, "someone/tiny", {"config.json": b"{}"})
    rows = [f"a film,{word} film,{label}" for word, label in (("good", 1), ("bad", 0)) * 10]
    split = "\n".join(["sentence1,sentence2,label", *rows]).encode()
    tasks = {f"rte/{name}.csv": split for name in ("train", "validation")}
    put(hub, "someone/glue", {"README.md": CONFIGURATIONS, **tasks})
    evaluate = ["--tasks", "rte", "--seeds", "0", "--epochs", "1", "--data", "someone/glue"]
    evaluate += ["--output-dir", str(tmp_path / "evaluated")]
    latency = ["--sequence-length", "16", "--rounds", "5", "--reference", "someone/tiny"]
    latency += ["--reference-revision", older]
    for command, options in (("latency", latency), ("evaluate", evaluate)):
        done = kdnas(environment, command, "someone/tiny", "--revision", older, *options)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("setting", ["teacher.model", "data.path", "student"])
def test_offline_what_the_cache_lacks_is_named(
    tiny_project: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    arguments = ["--config", str(tiny_project / "recipe.yaml"), f"--{setting}", "someone/else"]
    assert cli.main(["distill", *arguments]) == 2
    shown = capsys.readouterr().err
    assert re.search(rf"kdnas: error: {setting}: .*HF_HUB_OFFLINE is set, and someone/else is neither", shown)
