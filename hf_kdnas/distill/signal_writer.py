"""Writing a teacher's signals: in batches of like lengths, and on from where a killed build stopped."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.capture import Capture, forward_signals, signal_width
from hf_kdnas.distill.data import pad
from hf_kdnas.distill.signal_files import (
    DIGESTS,
    LENGTHS,
    META,
    PROGRESS,
    array_file,
    checksum,
    kept_dtype,
    kept_order,
    units,
)
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import reads_segments, reads_tokens
from hf_kdnas.precision import autocast
from hf_kdnas.run import read_json, write_bytes, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A build that is killed loses so many seconds of work at most.
CHECKPOINT_SECONDS = 30.0

# Tokens of a batch. A CPU's caches hold what a layer makes of few: 8192 took it 1.4 to 2 times as long, per
# token, as 1024 (384 and 768 wide, fp32 and bf16). Anything else wants many at once.
CPU_BATCH_TOKENS, BATCH_TOKENS = 1024, 8192

Progress = Callable[[int, int], None]


def token_batches(
    lengths: NDArray[np.int64], tokens: int, done: int = 0, progress: Progress | None = None
) -> Iterator[list[int]]:
    """Indices in batches of like lengths and at most `tokens` tokens with padding, longest first.

    Args:
        lengths: Of all texts.
        tokens: Most tokens of a batch.
        done: Texts, in this order, that are left out.
        progress: Called after each batch.
    """
    order = kept_order(lengths).tolist()
    while done < len(order):
        rows = max(1, tokens // max(1, int(lengths[order[done]])))
        yield order[done : done + rows]
        done = min(done + rows, len(order))
        if progress is not None:
            progress(done, len(order))


class Writer:
    """The arrays of a folder that is being built, perhaps begun by a process that was killed.

    Args:
        teacher: The teacher.
        input_ids: Token ids of each text, without padding.
        token_type_ids: Segment ids of each text, for pairs.
        digests: Of each text, as `text_digests` makes them.
        names: Signals to keep.
        folder: The unfinished folder.
        precision: How to keep all but logits, `fp16` or `fp32`.
        key: What the signals follow from (`signals_key`): a build of another key is cleared away.

    Attributes:
        lengths: Tokens of each text.
        done: Texts that were written, in the order of `token_batches`.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        input_ids: Sequence[Sequence[int]],
        token_type_ids: Sequence[Sequence[int]] | None,
        digests: NDArray[np.uint32],
        names: Sequence[str],
        folder: Path,
        precision: str,
        key: str,
    ) -> None:
        self.teacher = teacher
        self.input_ids = input_ids
        self.token_type_ids = token_type_ids
        self.names = names
        self.folder = folder
        self.precision = precision
        self.key = key
        self.token_logits = reads_tokens(type(teacher))
        self.capture = Capture(teacher, names, only=True)
        self.lengths = np.fromiter(map(len, input_ids), dtype=np.int64, count=len(input_ids))
        self.digests = digests
        self.done = self._resume()
        self._files: dict[str, IO[bytes]] = {}
        self._saved_at = time.monotonic()

    def _resume(self) -> int:
        """Texts that an earlier build of the same key wrote; what another one left is cleared away."""
        try:
            known = read_json(self.folder / PROGRESS) or {}
        except ValueError:
            known = {}
        if known.get("key") == self.key and self._holds(int(known["done"])):
            return int(known["done"])
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return 0

    def _holds(self, done: int) -> bool:
        """Whether all files are as long as so many texts make them."""
        lengths = self.lengths[kept_order(self.lengths)[:done]]
        for name in self.names:
            width, dtype = signal_width(name, self.teacher.config), kept_dtype(name, self.precision)
            path = array_file(self.folder, name)
            size = units(name, lengths, self.token_logits) * width * dtype.itemsize
            if not path.is_file() or path.stat().st_size < len(self._header(name)) + size:
                return False
        return True

    def _open(self, name: str) -> IO[bytes]:
        """A signal's file, at the end of what is done; anything behind that is cut off."""
        width, dtype = signal_width(name, self.teacher.config), kept_dtype(name, self.precision)
        done = self.lengths[kept_order(self.lengths)[: self.done]]
        path = array_file(self.folder, name)
        file = path.open("r+b" if path.exists() else "w+b")
        file.write(self._header(name))
        file.seek(units(name, done, self.token_logits) * width * dtype.itemsize, os.SEEK_CUR)
        file.truncate()
        return file

    def _header(self, name: str) -> bytes:
        """What the file of a signal, of all texts, begins with."""
        header = BytesIO()
        shape = (units(name, self.lengths, self.token_logits), signal_width(name, self.teacher.config))
        descr = np.lib.format.dtype_to_descr(kept_dtype(name, self.precision))
        np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
        return header.getvalue()

    def run(self, batch_size_tokens: int | None, compute: str, progress: Progress | None) -> None:
        """Write what is missing, batch by batch; the folder is whole afterwards.

        Raises:
            InvalidInput: If a value is too large for the precision, and then nothing is left that could go
                on; or if the disk takes no more.
        """
        if batch_size_tokens is None:
            batch_size_tokens = CPU_BATCH_TOKENS if self.teacher.device.type == "cpu" else BATCH_TOKENS
        training = self.teacher.training
        self.teacher.train(False)
        try:
            with ExitStack() as stack:
                self._files = {name: stack.enter_context(self._open(name)) for name in self.names}
                for indices in token_batches(self.lengths, batch_size_tokens, self.done, progress):
                    self._write(indices, compute)
            self.finish()
        except InvalidInput:
            shutil.rmtree(self.folder)
            raise
        except OSError as error:
            raise InvalidInput(
                "signals",
                str(self.folder),
                f"the disk must take all of them, and stopped at {self.done} of {len(self.lengths)} texts "
                f"({error.strerror})",
                "Make room and run the same again, which goes on from there; or let the teacher run live "
                "(distillation.signals.cache: false).",
            ) from error
        finally:
            self.teacher.train(training)

    @torch.inference_mode()
    def _write(self, indices: list[int], compute: str) -> None:
        """Run the teacher on a batch and write its signals."""
        batch = self._batch(indices)
        with autocast(batch["input_ids"].device, compute):
            signals = forward_signals(self.teacher, self.capture, batch)
        tokens = batch["attention_mask"].flatten().nonzero().flatten()
        for name, file in self._files.items():
            by_sample = name == "logits" and not self.token_logits
            file.write(self._kept(name, signals[name], None if by_sample else tokens).data)
        self.done += len(indices)
        if time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS:
            self._save()

    def _batch(self, indices: list[int]) -> dict[str, Tensor]:
        length = int(self.lengths[indices].max())
        padding = self.teacher.config.pad_token_id or 0
        ids, mask = pad([self.input_ids[index] for index in indices], padding, length)
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.token_type_ids is not None:
            batch["token_type_ids"], _ = pad([self.token_type_ids[index] for index in indices], 0, length)
        return {name: tensor.to(self.teacher.device) for name, tensor in batch.items()}

    def _kept(self, name: str, values: Tensor, tokens: Tensor | None) -> NDArray[Any]:
        """The values, or those of some tokens, as they are kept.

        By torch: NumPy takes ten times as long to halve and to check them. Halved first: what is taken
        out is copied, and a selection by indices takes a fifth of one by a mask.
        """
        dtype = kept_dtype(name, self.precision)
        kept = values.to(getattr(torch, dtype.name))
        if tokens is not None:
            kept = kept.flatten(0, 1).index_select(0, tokens)
        if not torch.stack(kept.aminmax()).isfinite().all():
            raise InvalidInput(
                "precision",
                self.precision,
                f"{name} of this teacher reaches {values.abs().max():g}, {dtype} {np.finfo(dtype).max:g}",
                "Keep the signals in fp32 (distillation.signals.precision); if they are not finite there "
                "either, run the teacher in float32, or mend it.",
            )
        return kept.cpu().numpy()

    def _save(self) -> None:
        """Write out what is there, and only then how much it is."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        write_json(self.folder / PROGRESS, {"key": self.key, "done": self.done})
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Write everything out; meta.json comes last."""
        for file, array in ((LENGTHS, self.lengths), (DIGESTS, self.digests)):
            content = BytesIO()
            np.save(content, array)
            write_bytes(self.folder / file, content.getvalue())
        meta = {
            "key": self.key,
            "names": list(self.names),
            "teacher": Architecture.from_config(self.teacher.config).as_dict(),
            "vocab_size": self.teacher.config.vocab_size,
            "num_labels": self.teacher.config.num_labels,
            "token_logits": self.token_logits,
            "segments": reads_segments(self.teacher.config),
            "checksums": {
                name: checksum(np.load(array_file(self.folder, name), mmap_mode="r")) for name in self.names
            },
        }
        write_json(self.folder / META, meta)
        (self.folder / PROGRESS).unlink(missing_ok=True)
