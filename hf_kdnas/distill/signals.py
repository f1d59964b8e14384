"""What the teacher says about a fixed set of texts: computed once, kept on disk, read by every student."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.capture import signal_width
from hf_kdnas.distill.checks import check_lengths
from hf_kdnas.distill.signal_files import (
    DIGESTS,
    LENGTHS,
    META,
    array_file,
    check_room,
    checksum,
    kept_dtype,
    kept_order,
    occupied,
    put_in_place,
    unfinished_folder,
    units,
)
from hf_kdnas.distill.signal_keys import signals_key, teacher_hash, text_digests
from hf_kdnas.distill.signal_writer import Progress, Writer
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import EACH_TEXT, EACH_TOKEN, outputs_of, reads_segments, reads_tokens
from hf_kdnas.run import one_at_a_time

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class TeacherSignals:
    """A teacher's signals on disk, read by index. Make one with `build` or `open`.

    Attributes:
        folder: Where they are.
        key: Content hash of what they were made of (`signals_key`).
        names: The signals' names, sorted.
        lengths: Tokens of each text, (texts,).
        digests: Of each text, (texts,) (see `text_digests`).
        teacher: The teacher's shape.
        vocab_size: Size of the teacher's vocabulary.
        num_labels: Number of the teacher's outputs.
        token_logits: Whether it has them for each token.
        segments: Whether it reads segment ids, which the digests then are of as well.
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
        self.segments: bool = meta["segments"]
        self.lengths: NDArray[np.int64] = np.load(folder / LENGTHS)
        self.digests: NDArray[np.uint32] = np.load(folder / DIGESTS)
        self._checksums: dict[str, int] = {name: meta["checksums"][name] for name in self.names}
        order = kept_order(self.lengths)
        self._places = np.empty_like(order)
        self._places[order] = np.arange(len(order))
        self._starts = (np.cumsum(self.lengths[order]) - self.lengths[order])[self._places]
        self._arrays = {name: _mapped(folder, name) for name in self.names}
        for name, array in self._arrays.items():
            if len(array) != units(name, self.lengths, self.token_logits):
                raise ValueError(f"{name} is not whole")

    @classmethod
    def open(cls, folder: Path) -> TeacherSignals:
        """Open signals that were built before.

        Raises:
            InvalidInput: If the folder holds none, or not all of their files are whole.
        """
        try:
            return cls(folder)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
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
        batch_size_tokens: int | None = None,
        precision: str = "fp16",
        compute: str = "fp32",
        progress: Progress | None = None,
    ) -> TeacherSignals:
        """Run the teacher over texts and keep its signals; opens them where they are there already.

        The folder appears whole or not at all. One that was made of something else, or is damaged (all
        of it is read to see that), is built again. A build that was killed goes on where it stopped. Of
        several processes one builds, and the others wait for it.

        Args:
            teacher: The teacher; runs in evaluation mode, its own mode is restored.
            input_ids: Token ids of each text, without padding.
            names: Signals to keep.
            folder: Where to put them.
            token_type_ids: Segment ids of each text, for pairs.
            batch_size_tokens: Tokens of a batch, with padding; None takes what suits the teacher's device.
            precision: How to keep all but logits, `fp16` or `fp32`; logits are kept in fp32.
            compute: How the teacher runs: `fp32` (as its weights are), or under autocast in `bf16` or
                `fp16`.
            progress: Called with the number of texts done and of all texts.

        Raises:
            InvalidInput: If the teacher has no such signal, or logits over a vocabulary, a text is longer
                than it takes, the disk has no room, or a value is too large for the precision.
        """
        names = sorted(set(names))
        outputs = outputs_of(type(teacher))
        if "logits" in names and outputs not in (EACH_TEXT, EACH_TOKEN):
            raise InvalidInput(
                "teacher",
                type(teacher).__name__,
                f"only logits of each text or token are kept, not those of {outputs}",
                "Run it live: give the trainer the model itself.",
            )
        lengths = list(map(len, input_ids))
        check_lengths(lengths, teacher.config, "teacher")
        key = signals_key(
            teacher_hash(teacher), input_ids, names, precision, token_type_ids=token_type_ids, compute=compute
        )
        read = token_type_ids if reads_segments(teacher.config) else None
        digests = text_digests(input_ids, read)
        found = _found(folder, key, lengths, digests)
        if found is not None:
            return found
        size = cls.size_bytes(
            teacher.config, lengths, names, precision, token_logits=reads_tokens(type(teacher))
        )
        with one_at_a_time(folder):
            if _found(folder, key, lengths, digests) is None:
                unfinished = unfinished_folder(folder)
                check_room(size - occupied(unfinished), folder)
                writer = Writer(
                    teacher, input_ids, token_type_ids, digests, names, unfinished, precision, key
                )
                writer.run(batch_size_tokens, compute, progress)
                put_in_place(unfinished, folder)
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
            units(name, sizes, token_logits)
            * signal_width(name, config)
            * kept_dtype(name, precision).itemsize
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

    def undamaged(self) -> bool:
        """Whether the arrays are as they were written; reads all of them."""
        return all(checksum(array.numpy()) == self._checksums[name] for name, array in self._arrays.items())

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
                signals[name] = array.index_select(0, torch.from_numpy(self._places[rows]))
            else:
                signals[name] = array.index_select(0, tokens).view(len(rows), length, -1)
        return signals


def _opened(folder: Path, names: list[str]) -> TeacherSignals:
    return TeacherSignals.open(folder).only(names)


def _mapped(folder: Path, name: str) -> Tensor:
    # Mode "c" gives a writable view, as torch wants, whose changes never reach the file.
    return torch.from_numpy(np.load(array_file(folder, name), mmap_mode="c"))


def _found(folder: Path, key: str, lengths: list[int], digests: NDArray[np.uint32]) -> TeacherSignals | None:
    """The signals in a folder, if they are of this key and these texts, and undamaged."""
    try:
        signals = TeacherSignals.open(folder)
    except InvalidInput:
        return None
    same = np.array_equal(signals.lengths, lengths) and np.array_equal(signals.digests, digests)
    return signals if signals.key == key and same and signals.undamaged() else None
