"""Where a study is kept: a journal file, or a database that several launches share."""

from __future__ import annotations

import json
import re
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from hf_kdnas.errors import InvalidInput, MissingPackage


def is_database(storage: str | Path) -> bool:
    """Whether a storage is the URL of a database; a journal file else."""
    return isinstance(storage, str) and "://" in storage


def journal(path: Path) -> JournalStorage:
    """A journal file, mended where an interrupted launch left it broken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.lock").unlink(missing_ok=True)
    _cut_torn_line(path)
    return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))


def _cut_torn_line(path: Path) -> None:
    """Cut back a last line that was not written to its end: the next write would append to it."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
    if last and not _is_json(last):
        whole = whole[: -len(last)]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def database(url: str) -> BaseStorage:
    """A database that Optuna can keep studies in.

    Raises:
        InvalidInput: If the URL leads to none.
        MissingPackage: If its driver is not installed.
    """
    shown = _without_password(url)
    # Which driver a bare postgresql:// means depends on SQLAlchemy's version.
    url = re.sub("^postgres(ql)?://", "postgresql+psycopg://", url)
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # each database driver has errors of its own
        if isinstance(error, ImportError) and url.startswith("postgresql"):
            raise MissingPackage("psycopg", f"to reach {shown}", '"hf-kdnas[postgres]"') from error
        raise InvalidInput(
            "search.storage",
            shown,
            f"Optuna can't open it ({type(error).__name__})",
            "Give a URL such as postgresql://USER:PASSWORD@HOST/DATABASE, or null for a journal file.",
        ) from error


def _without_password(url: str) -> str:
    """The URL without what stands before the host, which errors must not show."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
