from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_kdnas import run
from hf_kdnas.errors import InvalidInput
from hf_kdnas.run import RunFolder, atomic_folder, read_json, recover_folder, write_json, write_text


def test_the_same_recipe_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open("name: a", "1")
    write_json(folder / "made.json", 1)
    folder.open("name: a", "1")
    assert read_json(folder / "made.json") == 1


def test_another_recipe_is_refused_unless_asked_for(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open("name: a", "1")
    write_json(folder / "made.json", 1)
    with pytest.raises(InvalidInput, match=r"--resume.*--overwrite"):
        folder.open("name: b", "2")
    assert (folder / "recipe.yaml").read_text() == "name: a"
    folder.open("name: b", "2", resume=True)
    assert read_json(folder / "made.json") == 1
    folder.open("name: c", "3", overwrite=True)
    assert read_json(folder / "made.json") is None


def test_a_kill_while_a_run_is_deleted_leaves_nothing_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open("name: a", "1")
    for name in ("students", "search"):
        (folder / name).mkdir()

    def dies(path: Path) -> None:
        path.rmdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(run.shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        folder.open("name: a", "1", overwrite=True)
    monkeypatch.undo()
    assert len([each for each in folder.path.iterdir() if each.is_dir()]) == 1
    for resume in (False, True):
        with pytest.raises(InvalidInput, match=r"left of a run that was being deleted.*--overwrite"):
            folder.open("name: a", "1", resume=resume)
    folder.open("name: a", "1", overwrite=True)
    assert sorted(each.name for each in folder.path.iterdir()) == ["recipe.yaml", "run.json"]
    folder.open("name: a", "1")


def test_a_kill_within_the_first_file_leaves_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / ".run.json.half").write_text("{", encoding="utf-8")
    RunFolder(tmp_path).open("name: a", "1")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InvalidInput, match="output_dir"):
        RunFolder(tmp_path).open("name: a", "1", overwrite=overwrite)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_seconds_add_up_over_launches(tmp_path: Path) -> None:
    for _ in range(2):
        with RunFolder(tmp_path).timed("search"):
            pass
    assert set(RunFolder(tmp_path).seconds()) == {"search"}


def test_an_error_leaves_no_half_folder(tmp_path: Path) -> None:
    def broken() -> None:
        with atomic_folder(tmp_path / "made") as unfinished:
            (unfinished / "weights").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_a_folder_is_replaced_loses_nothing(tmp_path: Path) -> None:
    target, written = tmp_path / "checkpoint", "weights"
    with atomic_folder(target) as unfinished:
        (unfinished / written).write_text("old")
    script = (
        "import os, sys, pathlib; from hf_kdnas import run\n"
        "target, replace = pathlib.Path(sys.argv[1]), pathlib.Path.replace\n"
        "def killing(source, to): os.kill(os.getpid(), 9) if to == target else replace(source, to)\n"
        "pathlib.Path.replace = killing\n"
        "with run.atomic_folder(target) as unfinished: (unfinished / 'weights').write_text('new')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(target)], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    recover_folder(target)
    assert (target / written).read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint"]
    with atomic_folder(target) as unfinished:
        (unfinished / written).write_text("newer")
    assert (target / written).read_text() == "newer"
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint"]


def test_a_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "notes.json", "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "notes.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]
    assert (tmp_path / "notes.json").read_text(encoding="utf-8") == "old"


def test_a_kill_leaves_no_half_file(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    write_json(target, "old")
    script = (
        "import os, sys, pathlib; from hf_kdnas import run\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), 9)\n"
        "run.write_json(pathlib.Path(sys.argv[1]), 'new')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(target)], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    assert read_json(target) == "old"
