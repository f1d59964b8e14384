"""Batches: cheap right-padding, the teacher's cached signals beside it, and batches of like lengths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback

from hf_kdnas import tasks
from hf_kdnas.distill.signal_keys import text_digests
from hf_kdnas.errors import InvalidInput
from hf_kdnas.labels import IGNORED

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from hf_kdnas.distill.signals import TeacherSignals
    from hf_kdnas.tasks.masking import Masking

# Columns of a row that say what is right.
LABELS = ("labels", "start_positions", "end_positions")

# The first of these that a row has is its labels, as for Transformers' own collators.
LABEL_COLUMNS = ("labels", "label", "label_ids")

# Batches are cut out of shuffled stretches of this many batches, each sorted by length: long enough
# that a batch has little padding, short enough that epochs still mix.
STRETCH = 50

SAMPLE_ROWS = 64

Row = TypeVar("Row")


def pad(sequences: Sequence[Sequence[int]], value: int, length: int) -> tuple[Tensor, Tensor]:
    """`hf_kdnas.tasks.pad`, in tensors."""
    padded, mask = tasks.pad(sequences, value, length)
    return torch.from_numpy(padded), torch.from_numpy(mask)


@dataclass(frozen=True)
class DistillationCollator:
    """Make a batch of rows, with the teacher's signals where they are cached.

    A row is a mapping with `input_ids`, without padding or with an `attention_mask` that tells it, and,
    where there are any, `token_type_ids`, `labels` (an integer; a float for regression; a list of floats,
    multi-hot, for multi-label; a list of integers, one a token, for token classification; without a
    masking also named `label` or `label_ids`), `start_positions` and `end_positions` (tokens, for question
    answering) and `index`, its place in the set that `signals` were made of.

    The batch has `input_ids`, `attention_mask`, `token_type_ids` where the rows do, (batch, length),
    `labels`, (batch,), (batch, labels) or, with -100 in the padding, (batch, length), `start_positions`
    and `end_positions` (batch,), and `teacher`, the teacher's signals by name, each (batch, length,
    width) but for the "logits" of a classification, (batch, labels).

    Attributes:
        pad_token_id: Id that fills the padding.
        signals: The teacher's signals, or None.
        pad_to_multiple_of: Round the batch's length up to a multiple of this (tensor cores).
        masking: Hides tokens of rows that have no labels, which then are the hidden tokens, (batch, length).
        epoch: (2,): the training's seed and epoch, from which follows what is hidden; None draws by torch's
            generator, which a checkpoint keeps too late: the loader is a batch ahead.
    """

    pad_token_id: int
    signals: TeacherSignals | None = None
    pad_to_multiple_of: int | None = None
    masking: Masking | None = None
    epoch: Tensor | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make the batch.

        Raises:
            InvalidInput: If a row has no `index`, or is not the text that the signals of its index are of.
        """
        rows = list(map(unpadded, rows))
        ids = [row["input_ids"] for row in rows]
        length = max(map(len, ids))
        if self.pad_to_multiple_of:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        batch: dict[str, Any] = {}
        batch["input_ids"], batch["attention_mask"] = pad(ids, self.pad_token_id, length)
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"], _ = pad([row["token_type_ids"] for row in rows], 0, length)
        columns = {name: name for name in LABELS} | {"labels": self.label_column(rows[0])}
        for name, column in columns.items():
            if column in rows[0]:
                batch[name] = _labels([row[column] for row in rows], length)
        if self.masking is not None and "labels" not in batch:
            given = batch["input_ids"], batch["attention_mask"]
            batch["input_ids"], batch["labels"] = (
                self.masking(*given) if self.epoch is None else self.masking.in_epoch(self.epoch, *given)
            )
        if self.signals is not None:
            if "index" not in rows[0]:
                raise InvalidInput(
                    "index",
                    ", ".join(rows[0]),
                    "cached signals are found by a row's place in the set that they were built from",
                    'Add it: dataset.add_column("index", range(len(dataset))).',
                )
            indices = [row["index"] for row in rows]
            _check_texts(self.signals, indices, rows)
            batch["teacher"] = self.signals.collate(indices, length)
        return batch

    def label_column(self, row: Mapping[str, Any]) -> str:
        """Where a row has its labels; beside a masking a `label` is one of another task."""
        names = LABEL_COLUMNS if self.masking is None else ()
        return next((name for name in names if name in row), LABEL_COLUMNS[0])

    def only(self, names: Iterable[str]) -> DistillationCollator:
        """The same without the cached signals that are not named, which are then never read."""
        return self if self.signals is None else replace(self, signals=self.signals.only(names))

    def without_signals(self) -> DistillationCollator:
        """The same for rows that the teacher's signals don't cover, such as a validation split.

        Of these the same tokens are hidden each time.
        """
        epoch = None if self.epoch is None else torch.stack((self.epoch[0], torch.zeros_like(self.epoch[1])))
        return replace(self, signals=None, epoch=epoch)


def _labels(values: Sequence[Any], length: int) -> Tensor:
    """One a row, or multi-hot floats, as they are; one a token padded."""
    if hasattr(values[0], "tolist"):  # a dataset with_format("torch") or "numpy"
        values = [value.tolist() for value in values]
    if _one_a_token(values[0]):
        return pad(values, IGNORED, length)[0]
    return torch.tensor(values)


def unpadded(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row without the padding that its tokenizer gave it: batches are padded as they are made."""
    mask = row.get("attention_mask")
    if mask is None or all(mask):
        return row
    kept = [place for place, is_token in enumerate(mask) if is_token]

    def cut(name: str, value: Any) -> Any:
        if name in ("start_positions", "end_positions"):
            return int(value) - kept[0]
        if name in ("input_ids", "token_type_ids") or (name in LABEL_COLUMNS and _one_a_token(value)):
            return [int(value[place]) for place in kept]
        return value

    return {name: cut(name, value) for name, value in row.items() if name != "attention_mask"}


def _one_a_token(label: Any) -> bool:
    """Whether a row's label is a list of whole numbers; floats are multi-hot."""
    values = label.tolist() if hasattr(label, "tolist") else label
    return isinstance(values, Sequence) and len(values) > 0 and isinstance(values[0], int)


def spread_rows(rows: Sequence[Row]) -> list[Row]:
    """At most SAMPLE_ROWS rows spread over all, the same on every rank: what objectives are calibrated on."""
    return [rows[index] for index in range(0, len(rows), math.ceil(len(rows) / SAMPLE_ROWS))]


def _check_texts(signals: TeacherSignals, indices: list[int], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows and signals that don't belong together must not be trained on silently."""
    segments = signals.segments and "token_type_ids" in rows[0]
    digests = text_digests(
        [row["input_ids"] for row in rows], [row["token_type_ids"] for row in rows] if segments else None
    )
    if max(indices) >= len(signals) or not np.array_equal(signals.digests[indices], digests):
        raise InvalidInput(
            "index",
            indices,
            f"the teacher's signals in {signals.folder} cover {len(signals)} other sequences",
            "Build the signals from these rows, in the order of their index, with their token_type_ids if "
            "they have any.",
        )


class LengthGroupedSampler(Sampler[int]):
    """Indices in an order that batches sequences of like lengths, new in each epoch.

    The order follows from (seed, epoch) alone, never from a global generator, so that a resumed run
    sees the same batches. Nothing is dropped; a last, smaller batch comes last. Use it with a
    `BatchSampler` or `DataLoader` of the same batch size, or take `batches` directly.

    Args:
        lengths: Length of each sequence.
        batch_size: Sequences of a batch, over all ranks.
        seed: Seed of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, counted from 0 (Accelerate calls this)."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> list[list[int]]:
        """The batches of the epoch, each a list of indices."""
        random = np.random.default_rng([self._seed, self._epoch])
        order = random.permutation(len(self._lengths))
        size, stretch = self._batch_size, self._batch_size * STRETCH
        for start in range(0, len(order), stretch):
            part = order[start : start + stretch]
            order[start : start + stretch] = part[np.argsort(self._lengths[part], kind="stable")]
        whole = len(order) // size * size
        full = random.permutation(order[:whole].reshape(-1, size))
        rest = order[whole:]
        return [*full.tolist(), *([rest.tolist()] if len(rest) else [])]


class EpochOrder(TrainerCallback):
    """Tells the sampler its epoch, and the collator.

    Trainer does so as well, but on Transformers 5 it doesn't reach through the wrappers that a resumed
    epoch puts around the sampler on several ranks.
    """

    sampler: LengthGroupedSampler | None = None
    epoch: Tensor | None = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell it."""
        if self.sampler is not None:
            self.sampler.set_epoch(int(state.epoch or 0))
        if self.epoch is not None:
            self.epoch[1] = int(state.epoch or 0)
