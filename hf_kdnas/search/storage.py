"""Where a study is kept: a journal file, or a database that several launches share."""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from hf_kdnas.errors import InvalidInput, MissingPackage

# Seconds from one sign of life of a trial to the next; after two without one other launches take it for dead.
BEAT = 60


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's remarks: that a study was created, and that signs of life are for its own loop."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            warnings.filterwarnings("ignore", "Heartbeat of storage")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


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
    # Which driver a bare postgresql:// means depends on SQLAlchemy's version.
    dialect = re.sub("^postgres(ql)?://", "postgresql+psycopg://", url)
    try:
        with quiet():
            return optuna.storages.get_storage(RDBStorage(dialect, heartbeat_interval=BEAT))
    except Exception as error:  # each database driver has errors of its own
        if isinstance(error, ImportError) and dialect.startswith("postgresql"):
            raise MissingPackage("psycopg", f"to reach {url}", '"hf-kdnas[postgres]"') from error
        raise InvalidInput(
            "search.storage",
            url,
            f"Optuna can't open it ({type(error).__name__})",
            "Give a URL such as postgresql://USER:PASSWORD@HOST/DATABASE, or null for a journal file.",
        ) from error


def beat(study: optuna.Study, trials: Collection[optuna.Trial]) -> None:
    """Give signs of life of trials that run, which Optuna does not for those that were asked for.

    In a journal file, which belongs to one launch, none are needed.

    Args:
        study: The study.
        trials: Trials that this launch asked it for.
    """
    storage = study._storage
    if isinstance(storage, BaseHeartbeat):
        for trial in trials:
            storage.record_heartbeat(trial._trial_id)


@contextmanager
def heartbeats(study: optuna.Study, running: Callable[[], Collection[optuna.Trial]]) -> Iterator[None]:
    """Give signs of life of whatever trials run, time and again while this is open.

    Args:
        study: The study.
        running: Tells which trials run.
    """
    closed = threading.Event()

    def keep_beating() -> None:
        while not closed.wait(BEAT):
            with suppress(StorageInternalError):  # a database that is back in time for the next one
                beat(study, list(running()))

    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()
