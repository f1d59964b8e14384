"""Runs: what they learn from and are scored on, how they are kept, resumed and shared out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_kdnas.errors import InvalidInput
from hf_kdnas.evaluation import runs
from hf_kdnas.recipe import EvaluationSection
from hf_kdnas.run import read_json
from hf_kdnas.workflows import evaluate

Settings = Callable[..., EvaluationSection]

# Kills itself when a run begins to be trained: at the given one.
LAUNCH = """
import os, sys
from hf_kdnas import cli
from hf_kdnas.evaluation import runs

train, begun = runs.train_alone, 0

def killing(*arguments, **options):
    global begun
    begun += 1
    if begun == int(sys.argv[1]):
        os.kill(os.getpid(), 9)
    train(*arguments, **options)

runs.train_alone = killing
sys.exit(cli.main(sys.argv[2:]))
"""
TWO_RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "hf_kdnas"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[float, int]]]:
    """Learning rate and number of rows of each training."""
    train, calls = runs.train_alone, []

    def noting(model: Any, criterion: Any, section: Any, rows: Any, *arguments: Any, **options: Any) -> None:
        calls.append((section.learning_rate, len(rows)))
        train(model, criterion, section, rows, *arguments, **options)

    monkeypatch.setattr(runs, "train_alone", noting)
    return calls


def test_every_kind_of_task_is_learned_and_scored(student: Path, settings: Settings, tmp_path: Path) -> None:
    """Chance is a half, a third, and a correlation of 0."""
    section = settings(tasks=["sst2", "rte", "mrpc", "stsb", "mnli"], seeds=[0], epochs=[12.0])
    found = evaluate(str(student), section, output_dir=str(tmp_path / "out"))
    scores = {task: each["scores"] for task, each in found["tasks"].items()}
    assert {
        task: {split: set(each) for split, each in splits.items()} for task, splits in scores.items()
    } == {
        "sst2": {"validation": {"accuracy"}},
        "rte": {"validation": {"accuracy"}},
        "mrpc": {"validation": {"accuracy", "f1"}},
        "stsb": {"validation": {"pearson", "spearman"}},
        "mnli": {"validation_matched": {"accuracy"}, "validation_mismatched": {"accuracy"}},
    }
    for splits in scores.values():
        for metrics in splits.values():
            for values in metrics.values():
                assert len(values) == 1
                assert values[0] > 0.6, (splits, values)
    assert found == read_json(tmp_path / "out" / "results.json")
    assert found["parameters"] > 20_000
    assert "STS-B Spearman" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_without_a_choice_all_training_rows_are_learned_from(
    student: Path, settings: Settings, tmp_path: Path, trained: list[tuple[float, int]]
) -> None:
    found = evaluate(str(student), settings(), output_dir=str(tmp_path / "out"))
    assert trained == [(3e-3, 96), (3e-3, 96)]
    assert found["tasks"]["sst2"]["chosen"] == {"learning_rate": 3e-3, "epochs": 2.0, "batch_size": 16}
    assert found["tasks"]["sst2"]["grid"] == []


def test_the_grid_is_chosen_from_on_rows_held_out_of_training(
    student: Path,
    settings: Settings,
    tmp_path: Path,
    trained: list[tuple[float, int]],
    turn_validation: Callable[[str], None],
) -> None:
    """On the turned validation split the rate that learns nothing would be the better one."""
    turn_validation("sst2")
    section = settings(learning_rates=[1e-9, 3e-3], epochs=[4.0], held_out=0.25)
    found = evaluate(str(student), section, output_dir=str(tmp_path / "out"))["tasks"]["sst2"]
    part = trained[0][1]
    assert 60 <= part <= 80
    assert trained == [(1e-9, part), (1e-9, part), (3e-3, part), (3e-3, part), (3e-3, 96), (3e-3, 96)]
    assert found["chosen"]["learning_rate"] == 3e-3
    assert [each["learning_rate"] for each in found["grid"]] == [1e-9, 3e-3]
    slow, fast = (sum(each["held_out"]) / 2 for each in found["grid"])
    assert fast > 0.9 > slow
    assert max(found["scores"]["validation"]["accuracy"]) < 0.2


def test_a_run_that_diverges_is_neither_chosen_nor_hidden(
    student: Path, settings: Settings, tmp_path: Path
) -> None:
    section = settings(learning_rates=[1e30, 3e-3], seeds=[0])
    found = evaluate(str(student), section, output_dir=str(tmp_path / "out"))["tasks"]["sst2"]
    assert found["grid"][0]["held_out"] == [None]
    assert found["chosen"]["learning_rate"] == 3e-3
    with pytest.raises(InvalidInput, match=r"learning_rates: .*sst2 diverges at every point"):
        evaluate(str(student), settings(learning_rates=[1e30, 1e29]), output_dir=str(tmp_path / "worse"))
    alone = evaluate(str(student), settings(learning_rates=[1e30]), output_dir=str(tmp_path / "alone"))
    assert alone["tasks"]["sst2"]["scores"]["validation"]["accuracy"] == [None, None]
    assert "diverged" in (tmp_path / "alone" / "table.md").read_text(encoding="utf-8")


def test_finished_runs_are_not_done_again_unless_weights_or_rows_changed(
    student: Path,
    settings: Settings,
    tmp_path: Path,
    trained: list[tuple[float, int]],
    turn_validation: Callable[[str], None],
    tiny_bert_config: Any,
) -> None:
    from transformers import BertModel

    def again(**changes: Any) -> int:
        trained.clear()
        evaluate(str(student), settings(**changes), output_dir=str(tmp_path / "out"), resume=True)
        return len(trained)

    assert [again(), again(), again(seeds=[0, 1, 2])] == [2, 0, 1]
    turn_validation("sst2")
    assert [again(), again()] == [2, 0]
    BertModel(tiny_bert_config).save_pretrained(student)
    assert [again(), again()] == [2, 0]


def _launch(arguments: list[str], command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def _command(student: Path, glue: Path, out: Path) -> list[str]:
    return [
        *("evaluate", str(student), "--data", str(glue), "--tasks", "sst2", "stsb", "--seeds", "0", "1"),
        *("--learning-rates", "1e-3", "3e-3", "--epochs", "1", "--batch-sizes", "16", "--precision", "fp32"),
        *("--output-dir", str(out), "--published"),
    ]


@pytest.mark.slow
def test_killed_or_on_two_ranks_it_finds_the_same(student: Path, glue: Path, tmp_path: Path) -> None:
    """8 runs to choose and 4 to report."""
    done = _launch(["-m", "hf_kdnas"], _command(student, glue, tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| model ")
    assert "| BERT-base " in done.stdout
    assert (tmp_path / "whole" / "table.md").read_text(encoding="utf-8") == done.stdout
    whole = read_json(tmp_path / "whole" / "results.json")

    killed = _command(student, glue, tmp_path / "killed")
    for at, kept in ((4, 3), (7, 9)):
        done = _launch(["-c", LAUNCH, str(at)], killed)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len([*(tmp_path / "killed").rglob("lr*.json")]) == kept
    done = _launch(["-c", LAUNCH, "4"], killed)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "killed" / "results.json")["tasks"] == whole["tasks"]

    done = _launch(TWO_RANKS, _command(student, glue, tmp_path / "ranks"), ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| model ") == 1
    together = read_json(tmp_path / "ranks" / "results.json")
    assert together["tasks"] == whole["tasks"]
    assert together["environment"]["processes"] == "2"
