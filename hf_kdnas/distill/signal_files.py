"""How a teacher's signals lie on disk, and who may put them there.

A folder holds one array per signal without any padding, the longest text first: the order in which the
teacher reads them, so that a file only ever grows at its end, and texts that a student meets in one batch
lie near each other. Beside them are the lengths and digests of the texts in their own order, and
`meta.json`, which is written last.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_kdnas.errors import InvalidInput

META = "meta.json"
LENGTHS = "lengths.npy"
DIGESTS = "digests.npy"

# How far a build came, in its unfinished folder.
PROGRESS = "progress.json"

PRECISIONS: dict[str, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}


def array_file(folder: Path, name: str) -> Path:
    """The file of a signal."""
    return folder / f"{name}.npy"


def kept_order(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The texts in the order in which their signals lie in the files."""
    return np.argsort(-lengths, kind="stable")


def units(name: str, lengths: NDArray[np.int64], token_logits: bool) -> int:
    """Rows of a signal's array: samples for the logits of a classification, else tokens."""
    return len(lengths) if name == "logits" and not token_logits else int(lengths.sum())


def kept_dtype(name: str, precision: str) -> np.dtype[Any]:
    """What a signal is kept in.

    Raises:
        InvalidInput: If the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise InvalidInput(
            "precision", precision, f"precisions are {', '.join(PRECISIONS)}", "Choose one of these."
        )
    # Logits of few labels take little beside a hidden state, and are what the student copies.
    return PRECISIONS["fp32"] if name == "logits" else PRECISIONS[precision]


def checksum(array: NDArray[Any]) -> int:
    """Sum of an array's bytes, eight at a time: finds a damaged block at the speed of memory."""
    content = array.reshape(-1).view(np.uint8)
    whole = len(content) // 8 * 8
    with np.errstate(over="ignore"):
        return int(content[:whole].view(np.uint64).sum()) + int(content[whole:].sum())


def check_room(wanted: int, folder: Path) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        wanted: Bytes.
        folder: Where they would go; need not exist.

    Raises:
        InvalidInput: If fewer bytes are free (says how many, and how many are needed).
    """
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if wanted > free:
        raise InvalidInput(
            "signals",
            f"{wanted / 1e9:.2f} GB of the teacher's signals",
            f"{existing} has {free / 1e9:.2f} GB free",
            "Free that much, set KDNAS_CACHE to a larger disk, or let the teacher run live "
            "(distillation.signals.cache: false).",
        )


def unfinished_folder(folder: Path) -> Path:
    """Where a folder is built: beside the final one, on the same file system."""
    return folder.with_name(f".{folder.name}.unfinished")


def occupied(folder: Path) -> int:
    """Bytes that an unfinished folder takes on disk by now."""
    return sum(file.stat().st_size for file in folder.glob("*"))


def put_in_place(unfinished: Path, folder: Path) -> None:
    """Replace what is in a folder's place, if anything, by the finished one."""
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)
