"""Tasks that learn from texts alone, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
