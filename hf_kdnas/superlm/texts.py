"""Streams of text, cut into windows of equal length."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_kdnas.errors import InvalidInput
from hf_kdnas.tables import read_splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_kdnas.recipe import DataSection

Window: TypeAlias = list[int]
"""Token ids, special tokens included."""

# Texts that are joined before they are cut; what is left over of them is dropped.
JOINED_TEXTS = 1000

# Windows that are held back, for one of them to be drawn at random.
SHUFFLE_BUFFER = 10_000


class TextWindows:
    """The windows of a training text without end, and those of a held-out one.

    Texts are read as a stream (`datasets`, from files or the Hub), joined with a separator between them,
    and cut into windows of just `length` tokens, so that no batch has padding. The order of the windows is
    another in each epoch, and the same whenever the same seed is given.

    Args:
        data: Where the texts are; `reporting_split` is the held-out text, or, where it is null, the first
            windows of the training split, which then are not trained on.
        tokenizer: The teacher's.
        length: Tokens of a window.
        held_out: Number of windows of the held-out text.
        seed: Decides the order.

    Raises:
        InvalidInput: If the texts can't be loaded, or are too short for a window.
    """

    def __init__(
        self,
        data: DataSection,
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: int,
        held_out: int,
        seed: int,
    ) -> None:
        splits = read_splits(data, streaming=True)
        cut = partial(_windows, data=data, splits=splits, tokenizer=tokenizer, length=length)
        train = cut(key="train_split", name=data.train_split)
        if data.reporting_split is None:
            held_out_windows, train = train.take(held_out), train.skip(held_out)
        else:
            held_out_windows = cut(key="reporting_split", name=data.reporting_split).take(held_out)
        self.held_out: list[Window] = [each["input_ids"] for each in held_out_windows]
        self._train = train
        self._seed = seed
        within = data.reporting_split is None and self.held_out
        for windows, name in ((self.held_out, "held-out"), (list(train.take(1)), "training")):
            if not windows and within:
                raise InvalidInput(
                    "superlm.held_out",
                    held_out,
                    f"the text is {len(self.held_out)} windows of {length} tokens, and none is left to learn",
                    "Hold out fewer, or give more text.",
                )
            if not windows:
                raise InvalidInput(
                    "data.path",
                    data.path,
                    f"its {name} text is too short for one window of {length} tokens",
                    "Give more text, or a smaller data.max_length.",
                )

    def training(self, epoch: int = 0, skipped: int = 0) -> Iterator[tuple[Window, int, int]]:
        """Windows to train on, from a place on.

        Args:
            epoch: Where to go on.
            skipped: Windows of that epoch to leave out.

        Yields:
            A window, its epoch, and its place there, counted from 1: `training(*place)` goes on behind it.
        """
        while True:
            rows = _shuffled(iter(self._train), random.Random(f"{self._seed}/windows/{epoch}"))
            for place, row in enumerate(islice(rows, skipped, None), start=skipped + 1):
                yield row["input_ids"], epoch, place
            epoch, skipped = epoch + 1, 0


def _shuffled(rows: Iterator[Any], rng: random.Random) -> Iterator[Any]:
    """Rows through a buffer from which one is drawn at a time.

    `IterableDataset.shuffle` would also change the order of files, and so which windows come first, the
    held-out ones.
    """
    buffer = list(islice(rows, SHUFFLE_BUFFER))
    for row in rows:
        place = rng.randrange(len(buffer))
        yield buffer[place]
        buffer[place] = row
    rng.shuffle(buffer)
    yield from buffer


def _windows(
    *,
    data: DataSection,
    splits: Any,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    key: str,
    name: str,
) -> Any:
    """A stream of `{"input_ids": window}`."""
    if name not in splits:
        raise InvalidInput(f"data.{key}", name, f"splits are {', '.join(splits)}", "Choose one of these.")
    split, column = splits[name], data.text[0]
    rows = iter(split)
    first: dict[str, Any] = next(rows, {column: ""})
    if column not in first:
        raise InvalidInput(
            "data.text", column, f"columns are {', '.join(first)}", "Choose the column with the texts."
        )
    values = (row[column] for row in chain([first], rows))
    value = next((each for each in values if each is not None), "")
    if not isinstance(value, str):
        raise InvalidInput(
            "data.text",
            f"{column} with {type(value).__name__}",
            "texts are needed",
            "Choose another.",
        )
    join = partial(_joined, tokenizer=tokenizer, column=column, length=length)
    return split.select_columns([column]).map(
        join, batched=True, batch_size=JOINED_TEXTS, remove_columns=[column]
    )


def _joined(
    batch: dict[str, list[str | None]], *, tokenizer: PreTrainedTokenizerBase, column: str, length: int
) -> dict[str, list[Window]]:
    """Texts one after the other, cut into windows; rows that are null or blank are none."""
    texts = [text for text in batch[column] if text is not None and text.strip()]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    tokens = list(chain.from_iterable([*ids, tokenizer.sep_token_id] for ids in encoded))
    size = length - 2
    starts = range(0, len(tokens) - size + 1, size)
    return {
        "input_ids": [
            [tokenizer.cls_token_id, *tokens[start : start + size], tokenizer.sep_token_id]
            for start in starts
        ]
    }
