"""The page of many runs' results."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from hf_kdnas import cli
from hf_kdnas.hub.gallery import find_results, gallery_text
from hf_kdnas.resources import recipe_names


def runs_of(folder: Path, results: dict[str, Any]) -> Path:
    """Two runs of a recipe, one of another without INT8 or constraints, and files of others."""
    other = copy.deepcopy(results) | {"name": "quickstart", "seed": 7, "constraints_met": True}
    other["student"]["int8"] = None
    other["constraints"] = dict.fromkeys(other["constraints"])
    second = {**results, "seed": 43, "constraints_met": False}
    files = {"b": second, "a": results, "deep/er/c": other, "evaluate": {"tasks": []}, "list": []}
    for name, content in files.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "results.json").write_text(json.dumps(content))
    (folder / "broken").mkdir()
    (folder / "broken" / "results.json").write_text("{")
    return folder


def test_runs_are_found_once_and_in_order(tmp_path: Path, results: dict[str, Any]) -> None:
    runs_of(tmp_path, results)
    found = find_results([tmp_path, tmp_path / "a"])
    assert [(each["name"], each["seed"]) for each in found] == [
        ("made-up", 42),
        ("made-up", 43),
        ("quickstart", 7),
    ]


def test_the_page(tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results.md"
    assert cli.main(["gallery", str(runs_of(tmp_path, results)), "--output", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    text = output.read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert text.count("\n## made-up\n") == text.count("\n## quickstart\n") == 1
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| 4")]
    assert [row[0] for row in rows] == ["42", "43"]
    assert rows[0][1:6] == ["`4L-256H-1024F-8A-gelu`", "accuracy", "0.8342", "0.8172", "98.0 %"]
    assert rows[0][6] == "2.82 \N{MULTIPLICATION SIGN}"
    assert [row[10] for row in rows] == [
        "2.50 \N{MULTIPLICATION SIGN}, 96.0 %: met",
        "2.50 \N{MULTIPLICATION SIGN}, 96.0 %: not met",
    ]
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    missing = text.split("## Without a run here")[1]
    assert all((f"`{name}`" in missing) == (name != "quickstart") for name in recipe_names())
    assert str(tmp_path) not in text


def test_it_may_be_printed(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["gallery", str(runs_of(tmp_path, results) / "a")]) == 0
    assert capsys.readouterr().out == gallery_text([results])


def test_a_place_that_cannot_be_written(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["gallery", str(runs_of(tmp_path, results)), "--output", str(tmp_path)]) == 2
    assert "--output" in capsys.readouterr().err


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gallery", str(tmp_path)]) == 2
    assert "it holds no results.json of a finished run" in capsys.readouterr().err
