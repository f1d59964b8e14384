"""Masked language modelling: a student for any task, from texts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_kdnas import metrics
from hf_kdnas.errors import InvalidInput
from hf_kdnas.labels import IGNORED
from hf_kdnas.tasks.base import Row, chosen_metrics, source
from hf_kdnas.tasks.masking import Masking
from hf_kdnas.tasks.texts import UnlabelledTask, check_held_out, windows_of_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from hf_kdnas.recipe import DataSection
    from hf_kdnas.tables import Splits

METRICS = ("accuracy",)


@dataclass(frozen=True)
class MaskedLanguageModelling(UnlabelledTask):
    """Windows of texts; selection and reporting rows have their tokens hidden once and for all.

    Such a row has `labels`, the hidden tokens, -100 elsewhere.
    """

    head = "MaskedLM"
    # Its outputs are as wide as the vocabulary.
    evaluation_batch_size = 8
    unfit_objectives = frozenset()

    @classmethod
    def load(
        cls, data: DataSection, splits: Splits, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> MaskedLanguageModelling:
        """A column of texts.

        Raises:
            InvalidInput: If the tokenizer has no mask token, or no token of a split is hidden.
        """
        if tokenizer.mask_token_id is None:
            raise InvalidInput(
                "teacher.model",
                "a tokenizer without a mask token",
                "fill-mask needs one",
                "Choose a teacher that was trained by masked language modelling.",
            )
        masking = Masking(
            tokenizer.mask_token_id, len(tokenizer), tuple(tokenizer.all_special_ids), data.mlm_probability
        )

        def hidden(table: Any) -> list[Row]:
            rows = windows_of_texts(data, table, tokenizer, max_length)
            generator = torch.Generator().manual_seed(data.split_seed)
            return [_with_hidden(row, masking, generator) for row in rows]

        selection, reporting = hidden(splits.selection), hidden(splits.reporting)
        found = {"selection": _count_hidden(selection), "reporting": _count_hidden(reporting)}
        check_held_out(data, found, 1, "hidden tokens")
        return cls(
            kind="fill-mask",
            label_names=(),
            metrics=chosen_metrics(data.metric, METRICS, METRICS),
            dataset=source(data),
            columns=tuple(data.text),
            max_length=max_length,
            pad_token_id=tokenizer.pad_token_id or 0,
            train=windows_of_texts(data, splits.train, tokenizer, max_length),
            selection=selection,
            reporting=reporting,
            masking=masking,
        )

    def reduced(self, output: NDArray[Any], row: Row) -> NDArray[Any]:
        """The likeliest token of each hidden one's place."""
        return np.asarray(output[np.array(row["labels"]) != IGNORED].argmax(-1))

    def score(self, outputs: Sequence[NDArray[Any]], rows: Sequence[Row]) -> dict[str, float]:
        """All metrics, over the hidden tokens."""
        labels = np.concatenate([row["labels"] for row in rows])
        predictions, references = np.concatenate(outputs), labels[labels != IGNORED]
        return {
            name: metrics.compute(name, predictions.tolist(), references.tolist()) for name in self.metrics
        }


def _count_hidden(rows: Sequence[Row]) -> int:
    return sum(label != IGNORED for row in rows for label in row["labels"])


def _with_hidden(row: Row, masking: Masking, generator: torch.Generator) -> Row:
    ids = torch.tensor([row["input_ids"]])
    masked, labels = masking(ids, torch.ones_like(ids), generator)
    return {**row, "input_ids": masked[0].tolist(), "labels": labels[0].tolist()}
