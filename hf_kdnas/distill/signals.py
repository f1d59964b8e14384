"""What the teacher says about a fixed set of texts: computed once, kept on disk, read by every student.

A folder holds one memory-mapped array per signal without any padding, the lengths of the texts, and
`meta.json`, which tells a whole folder from a broken one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_kdnas.architecture import Architecture
from hf_kdnas.content import settings_hash, weights_hash
from hf_kdnas.distill.capture import Capture, forward_signals, signal_width
from hf_kdnas.distill.data import pad
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import reads_tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

META = "meta.json"
LENGTHS = "lengths.npy"

# Written into the keys: raised when the layout changes, so that old folders are built again.
LAYOUT = 2

PRECISIONS: dict[str, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}

Progress = Callable[[int, int], None]


class TeacherSignals:
    """A teacher's signals on disk, read by index. Make one with `build` or `open`.

    Attributes:
        folder: Where they are.
        key: Content hash of what they were made of (`signals_key`).
        names: The signals' names, sorted.
        lengths: Tokens of each text, (texts,).
        teacher: The teacher's shape.
        vocab_size: Size of the teacher's vocabulary.
        num_labels: Number of the teacher's outputs.
        token_logits: Whether it has them for each token.
    """

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        self.folder = folder
        self.key: str = meta["key"]
        self.names: list[str] = meta["names"]
        self.teacher = Architecture(**meta["teacher"])
        self.vocab_size: int = meta["vocab_size"]
        self.num_labels: int = meta["num_labels"]
        self.token_logits: bool = meta["token_logits"]
        self.lengths: NDArray[np.int64] = np.load(folder / LENGTHS)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._arrays = {name: _mapped(folder, name) for name in self.names}
        for name, array in self._arrays.items():
            if len(array) != _units(name, self.lengths, self.token_logits):
                raise ValueError(f"{name} is not whole")

    @classmethod
    def open(cls, folder: Path) -> TeacherSignals:
        """Open signals that were built before.

        Raises:
            InvalidInput: If the folder holds none, or not all of their files are whole.
        """
        try:
            return cls(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                "signals", str(folder), f"must be a whole folder of signals ({error})", "Build them again."
            ) from error

    @classmethod
    def build(
        cls,
        teacher: PreTrainedModel,
        input_ids: Sequence[Sequence[int]],
        names: Iterable[str],
        folder: Path,
        *,
        token_type_ids: Sequence[Sequence[int]] | None = None,
        batch_size_tokens: int = 8192,
        precision: str = "fp16",
        compute: str = "fp32",
        progress: Progress | None = None,
    ) -> TeacherSignals:
        """Run the teacher over texts and keep its signals; opens them where they are there already.

        The folder appears whole or not at all. One that was made of something else, or is broken, is
        built again.

        Args:
            teacher: The teacher; runs in evaluation mode, its own mode is restored.
            input_ids: Token ids of each text, without padding.
            names: Signals to keep.
            folder: Where to put them.
            token_type_ids: Segment ids of each text, for pairs.
            batch_size_tokens: Tokens of a batch, with padding.
            precision: How to keep all but logits, `fp16` or `fp32`; logits are kept in fp32.
            compute: How the teacher runs: `fp32`, or `bf16` (autocast).
            progress: Called with the number of texts done and of all texts.

        Raises:
            InvalidInput: If the teacher has no such signal, the disk has no room, or a value is too
                large for the precision.
        """
        names = sorted(set(names))
        key = signals_key(
            teacher_hash(teacher), input_ids, names, precision, token_type_ids=token_type_ids, compute=compute
        )
        found = _found(folder, key)
        if found is not None:
            return found
        size = cls.size_bytes(
            teacher.config, map(len, input_ids), names, precision, token_logits=reads_tokens(type(teacher))
        )
        check_room(size, folder)
        unfinished = _unfinished_folder(folder)
        try:
            writer = _Writer(teacher, input_ids, names, unfinished, precision)
            for indices in token_batches(writer.lengths, batch_size_tokens, progress):
                segments = None if token_type_ids is None else [token_type_ids[index] for index in indices]
                batch = _teacher_batch(teacher, [input_ids[index] for index in indices], segments)
                writer.write(indices, batch, compute)
            writer.finish(key)
            _move_into_place(unfinished, folder, key)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return cls.open(folder)

    @staticmethod
    def size_bytes(
        config: PretrainedConfig,
        lengths: Iterable[int],
        names: Iterable[str],
        precision: str = "fp16",
        *,
        token_logits: bool = False,
    ) -> int:
        """Bytes on disk that signals will take.

        Args:
            config: The teacher's config.
            lengths: Tokens of each text.
            names: Signals to keep.
            precision: `fp16` or `fp32`, as for `build`.
            token_logits: Whether the teacher's head reads every token (`reads_tokens`).

        Raises:
            InvalidInput: If the precision is unknown or the teacher has no such signal.
        """
        sizes = np.fromiter(lengths, dtype=np.int64)
        return sum(
            _units(name, sizes, token_logits) * signal_width(name, config) * _dtype(name, precision).itemsize
            for name in names
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[Callable[..., TeacherSignals], tuple[Path, list[str]]]:
        """Travel to other processes as a path, not as arrays."""
        return (_opened, (self.folder, self.names))

    def only(self, names: Iterable[str]) -> TeacherSignals:
        """The same without the signals that are not named, which are then never read."""
        fewer = object.__new__(TeacherSignals)
        fewer.__dict__.update(self.__dict__)
        fewer.names = sorted(set(names) & set(self.names))
        fewer._arrays = {name: self._arrays[name] for name in fewer.names}
        return fewer

    def collate(self, indices: Sequence[int], length: int) -> dict[str, Tensor]:
        """The signals of some texts, right-padded.

        Args:
            indices: Places of the texts in the set that the signals were built from.
            length: Length to pad to, at least the longest text's.

        Returns:
            "logits" (batch, labels), or (batch, length, labels) of a head that reads every token, in
            fp32; the others (batch, length, width) as they are kept. What stands in the padding means
            nothing.
        """
        rows = np.asarray(indices, dtype=np.int64)
        within = np.minimum(np.arange(length), self.lengths[rows, None] - 1)
        tokens = torch.from_numpy((self._starts[rows, None] + within).ravel())
        signals = {}
        for name, array in self._arrays.items():
            if name == "logits" and not self.token_logits:
                signals[name] = array.index_select(0, torch.from_numpy(rows))
            else:
                signals[name] = array.index_select(0, tokens).view(len(rows), length, -1)
        return signals


def _opened(folder: Path, names: list[str]) -> TeacherSignals:
    return TeacherSignals.open(folder).only(names)


def signals_key(
    teacher: str,
    input_ids: Sequence[Sequence[int]],
    names: Iterable[str],
    precision: str,
    *,
    token_type_ids: Sequence[Sequence[int]] | None = None,
    compute: str = "fp32",
) -> str:
    """Content hash of all that signals follow from.

    Args:
        teacher: `teacher_hash` of the teacher.
        input_ids: Token ids of each text.
        names: The signals.
        precision: How they are kept.
        token_type_ids: Segment ids of each text, for pairs.
        compute: How the teacher runs.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([LAYOUT, teacher, sorted(set(names)), precision, compute]).encode())
    for sequences in (input_ids, token_type_ids):
        if sequences is not None:
            digest.update(np.fromiter(map(len, sequences), dtype=np.int32).tobytes())
            digest.update(np.fromiter(chain.from_iterable(sequences), dtype=np.int32).tobytes())
    return digest.hexdigest()


def teacher_hash(teacher: PreTrainedModel) -> str:
    """Content hash of a teacher's weights and config, whatever files it came from."""
    config = teacher.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    return settings_hash(weights_hash(teacher), json.dumps(config, sort_keys=True, default=str))


def token_batches(
    lengths: NDArray[np.int64], tokens: int, progress: Progress | None = None
) -> Iterator[list[int]]:
    """Indices in batches of like lengths and at most `tokens` tokens with padding, longest first."""
    order = np.argsort(-lengths, kind="stable").tolist()
    done = 0
    while done < len(order):
        rows = max(1, tokens // max(1, int(lengths[order[done]])))
        yield order[done : done + rows]
        done = min(done + rows, len(order))
        if progress is not None:
            progress(done, len(order))


class _Writer:
    """The arrays of a folder that is being built."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        input_ids: Sequence[Sequence[int]],
        names: Sequence[str],
        folder: Path,
        precision: str,
    ) -> None:
        self.teacher = teacher
        self.names = names
        self.folder = folder
        self.precision = precision
        self.token_logits = reads_tokens(type(teacher))
        self.capture = Capture(teacher, names)
        self.lengths = np.fromiter(map(len, input_ids), dtype=np.int64, count=len(input_ids))
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.arrays = {
            name: np.lib.format.open_memmap(
                _file(folder, name),
                mode="w+",
                dtype=_dtype(name, precision),
                shape=(
                    _units(name, self.lengths, self.token_logits),
                    signal_width(name, teacher.config),
                ),
            )
            for name in names
        }

    @torch.inference_mode()
    def write(self, indices: list[int], batch: dict[str, Tensor], compute: str) -> None:
        """Run the teacher on a batch and write its signals."""
        device = batch["input_ids"].device.type
        training = self.teacher.training
        self.teacher.train(False)
        try:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=compute == "bf16"):
                signals = forward_signals(self.teacher, self.capture, batch)
        finally:
            self.teacher.train(training)
        kept = batch["attention_mask"].bool().flatten()
        tokens = np.concatenate(
            [np.arange(self.starts[index], self.starts[index] + self.lengths[index]) for index in indices]
        )
        for name in self.names:
            by_sample = name == "logits" and not self.token_logits
            where = indices if by_sample else tokens
            values = signals[name] if by_sample else signals[name].flatten(0, 1)[kept]
            self.arrays[name][where] = self._checked(name, values)

    def _checked(self, name: str, values: Tensor) -> NDArray[Any]:
        """The values as they are kept. By torch: NumPy takes ten times as long to halve and to check them."""
        dtype = _dtype(name, self.precision)
        kept = values.to(getattr(torch, dtype.name))
        if not torch.stack(kept.aminmax()).isfinite().all():
            raise InvalidInput(
                "precision",
                self.precision,
                f"{name} of this teacher reaches {values.abs().max():g}, {dtype} {np.finfo(dtype).max:g}",
                "Keep the signals in fp32; if they are not finite there either, mend the teacher.",
            )
        return kept.cpu().numpy()

    def finish(self, key: str) -> None:
        """Write everything out; meta.json comes last."""
        for array in self.arrays.values():
            array.flush()
        np.save(self.folder / LENGTHS, self.lengths)
        meta = {
            "key": key,
            "names": list(self.names),
            "teacher": Architecture.from_config(self.teacher.config).as_dict(),
            "vocab_size": self.teacher.config.vocab_size,
            "num_labels": self.teacher.config.num_labels,
            "token_logits": self.token_logits,
        }
        (self.folder / META).write_text(json.dumps(meta, indent=2), encoding="utf-8")


def _teacher_batch(
    teacher: PreTrainedModel, input_ids: list[Sequence[int]], token_type_ids: list[Sequence[int]] | None
) -> dict[str, Tensor]:
    length = max(map(len, input_ids))
    ids, mask = pad(input_ids, teacher.config.pad_token_id or 0, length)
    batch = {"input_ids": ids, "attention_mask": mask}
    if token_type_ids is not None:
        batch["token_type_ids"], _ = pad(token_type_ids, 0, length)
    return {name: tensor.to(teacher.device) for name, tensor in batch.items()}


def _units(name: str, lengths: NDArray[np.int64], token_logits: bool) -> int:
    """Rows of a signal's array: samples for the logits of a classification, else tokens."""
    return len(lengths) if name == "logits" and not token_logits else int(lengths.sum())


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _mapped(folder: Path, name: str) -> Tensor:
    # Mode "c" gives a writable view, as torch wants, whose changes never reach the file.
    return torch.from_numpy(np.load(_file(folder, name), mmap_mode="c"))


def _dtype(name: str, precision: str) -> np.dtype[Any]:
    if precision not in PRECISIONS:
        raise InvalidInput(
            "precision", precision, f"precisions are {', '.join(PRECISIONS)}", "Choose one of these."
        )
    # Logits of few labels take little beside a hidden state, and are what the student copies.
    return PRECISIONS["fp32"] if name == "logits" else PRECISIONS[precision]


def _found(folder: Path, key: str) -> TeacherSignals | None:
    """The signals in a folder, if they are whole and of this key."""
    try:
        signals = TeacherSignals.open(folder)
    except InvalidInput:
        return None
    return signals if signals.key == key else None


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


def _unfinished_folder(folder: Path) -> Path:
    """A fresh folder beside the final one, on the same file system; clears away those of killed builds."""
    prefix = f".{folder.name}.{socket.gethostname()}."
    for left in folder.parent.glob(f"{prefix}*"):
        process = int(left.name.removeprefix(prefix))
        if process == os.getpid() or not _alive(process):
            shutil.rmtree(left)
    unfinished = folder.with_name(f"{prefix}{os.getpid()}")
    unfinished.mkdir(parents=True)
    return unfinished


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _move_into_place(unfinished: Path, folder: Path, key: str) -> None:
    """Put a finished folder in its place, unless another process did so meanwhile."""
    if _found(folder, key) is not None:
        return
    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.replace(unfinished, folder)
    except OSError:
        if _found(folder, key) is None:
            raise
