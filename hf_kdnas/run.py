"""The run folder: every stage writes what it made, atomically, and is skipped when it is there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from hf_kdnas.errors import InvalidInput

if TYPE_CHECKING:
    from hf_kdnas.progress import Narrator


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """The same for a file that is no text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file, or None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    """What is other than it was, by dotted key: what it was and what it is, long lists cut short.

    Args:
        before: Settings as JSON gives them.
        now: Later ones; None is as good as no such key.
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return {
        key: (_short(old.get(key)), _short(new.get(key)))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(value: object) -> object:
    return [*value[:3], f"{len(value)} in all"] if isinstance(value, list) and len(value) > 4 else value


def require_writable(folder: Path, field: str, remedy: str) -> None:
    """Make a folder, unless it is there, and see that files can be made in it.

    Raises:
        InvalidInput: If they can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidInput(
            field, str(folder), f"must be a folder that can be written ({error.strerror})", remedy
        ) from None


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends without an error.

    What was there is whole until then: of a process that is killed in between, `recover_folder` finds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            replaced = _replaced(path)
            shutil.rmtree(replaced, ignore_errors=True)
            path.replace(replaced)
            temporary.replace(path)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Tidy up behind processes that were killed in `atomic_folder(path)`; nobody else may be writing to it.

    Where one died while it replaced the folder, the old one is put back. What others left is deleted.
    """
    replaced = _replaced(path)
    if replaced.exists() and not path.exists():
        replaced.replace(path)
    for left in path.parent.glob(f".{path.name}.*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the right to build a folder; other launches wait until this one is done, or dead."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        yield


def _replaced(path: Path) -> Path:
    """Where a folder is while another one takes its place."""
    return path.with_name(f".{path.name}.replaced")


# What says whose a run folder is; then of a run that `--overwrite` is deleting.
_IDENTITY = "run.json"
_DELETED = ""


class RunFolder:
    """What a workflow made so far, in one folder.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(
        self,
        recipe_yaml: str,
        fingerprint: str,
        *,
        name: str = "recipe.yaml",
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Make the folder, or go on in it if it belongs to the same recipe.

        Args:
            recipe_yaml: The resolved recipe, kept in the folder.
            fingerprint: Identifies the recipe.
            name: The file that it is kept in.
            resume: Go on with this recipe in a folder that another one began.
            overwrite: Delete what an earlier run left there.

        Raises:
            InvalidInput: If the folder holds something else, and neither is asked for; or it can't be
                written.
        """
        self.check(fingerprint, resume=resume, overwrite=overwrite)
        if overwrite and self.begun:
            self._clear()
        write_json(self.path / _IDENTITY, {"fingerprint": fingerprint})
        write_text(self.path / name, recipe_yaml)

    def check(self, fingerprint: str, *, resume: bool = False, overwrite: bool = False) -> None:
        """See that `open` would.

        Args:
            fingerprint: As for `open`.
            resume: As for `open`.
            overwrite: As for `open`.

        Raises:
            InvalidInput: As `open`.
        """
        require_writable(self.path, "output_dir", "Choose another folder.")
        identity = self._identity()
        # Of a launch that was killed while it wrote its first file, a part of that is left.
        others = (each for each in self.path.iterdir() if not each.name.startswith(f".{_IDENTITY}."))
        if identity is None and any(others):
            raise InvalidInput(
                "output_dir",
                str(self.path),
                "must be new, empty, or the folder of an earlier run",
                "Choose another folder.",
            )
        if identity is not None and identity["fingerprint"] == _DELETED and not overwrite:
            raise InvalidInput(
                "output_dir",
                str(self.path),
                "it holds what is left of a run that was being deleted",
                "Start again with --overwrite, or choose another folder.",
            )
        if identity is not None and identity["fingerprint"] != fingerprint and not (resume or overwrite):
            raise InvalidInput(
                "output_dir",
                str(self.path),
                "it holds the run of other settings",
                "Choose another folder, go on with --resume, or start again with --overwrite.",
            )

    @property
    def begun(self) -> bool:
        """Whether a run has been opened here."""
        return self._identity() is not None

    def _clear(self) -> None:
        """Delete all but the identity, which is nobody's before: what is half deleted is not gone on with."""
        write_json(self.path / _IDENTITY, {"fingerprint": _DELETED})
        for each in self.path.iterdir():
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            elif each.name != _IDENTITY:
                each.unlink()

    def _identity(self) -> dict[str, Any] | None:
        """What `open` wrote; None where there is no such file, or another program's of that name."""
        try:
            found = read_json(self.path / _IDENTITY)
        except ValueError:
            return None
        return found if isinstance(found, dict) and "fingerprint" in found else None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's seconds to those of a stage, over all launches of the run."""
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = self.seconds()
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - start, 2)
            write_json(self.path / "seconds.json", seconds)

    @contextmanager
    def stage(self, name: str, what: str, narrator: Narrator) -> Iterator[None]:
        """Say what begins, and add its seconds to those of a stage, both on the process that speaks."""
        narrator.say(what)
        with self.timed(name) if narrator.speaks else nullcontext():
            yield

    def seconds(self) -> dict[str, float]:
        """Seconds spent so far, by stage."""
        found: dict[str, float] = read_json(self.path / "seconds.json") or {}
        return found
