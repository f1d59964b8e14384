"""Tasks that learn from texts alone, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_kdnas.errors import InvalidInput
from hf_kdnas.tasks.base import Row, TaskData

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_kdnas.recipe import DataSection
    from hf_kdnas.tables import Table


@dataclass(frozen=True)
class UnlabelledTask(TaskData):
    """A task whose teacher is ready as it is, and all that a student learns from."""

    def config_fields(self) -> dict[str, Any]:
        """None: the student keeps the teacher's."""
        return {}

    def matched_to(self, config: PretrainedConfig) -> TaskData:
        """The same: there are no classes."""
        return self


def check_held_out(data: DataSection, found: Mapping[str, int], least: int, what: str) -> None:
    """Refuse splits that hold too little for a score.

    Args:
        data: Says where they come from.
        found: How much the splits `selection` and `reporting` hold.
        least: How much a score takes.
        what: Names it.

    Raises:
        InvalidInput: Naming the setting that the split follows from.
    """
    for split, count in found.items():
        if count < least:
            given = split == "reporting" and data.reporting_split is not None
            raise InvalidInput(
                "data.reporting_split" if given else f"data.{split}_fraction",
                f"{count} {what}",
                f"a student's score needs {least} at least",
                "Give more texts there." if given else "Give more texts, or a larger part of them.",
            )


def whole_texts(
    data: DataSection, table: Table, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Row]:
    """A row for each text, cut off after `max_length` tokens."""
    ids = tokenizer(table[data.text[0]], truncation=True, max_length=max_length, verbose=False)["input_ids"]
    return [{"input_ids": each, "index": index} for index, each in enumerate(ids)]


def windows_of_texts(
    data: DataSection, table: Table, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Row]:
    """Rows that hold all of each text, `max_length` tokens at a time."""
    ids = tokenizer(
        table[data.text[0]],
        truncation=True,
        max_length=max_length,
        return_overflowing_tokens=True,
        verbose=False,
    )["input_ids"]
    return [{"input_ids": each, "index": index} for index, each in enumerate(ids)]
