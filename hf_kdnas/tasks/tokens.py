"""A tag for each word of a text: names, parts of speech."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_kdnas import metrics
from hf_kdnas.errors import InvalidInput
from hf_kdnas.labels import IGNORED, Labels, read_labels
from hf_kdnas.tasks.base import LabelTask, Row, chosen_metrics, source

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from hf_kdnas.recipe import DataSection
    from hf_kdnas.tables import Splits, Table

METRICS = ("seqeval", "accuracy")

# Tags that mark spans, as seqeval reads them; heads may name them in lower case.
_SPAN_TAG = re.compile(r"O|[BIES](-.+)?", re.IGNORECASE)


@dataclass(frozen=True)
class TokenClassification(LabelTask):
    """A tag of each word, on the first of its tokens (`labels`: a list with -100 at the others)."""

    head = "TokenClassification"

    @classmethod
    def load(
        cls, data: DataSection, splits: Splits, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> TokenClassification:
        """Columns with lists of words and lists of tags, as many tags as words."""
        for name in ("train", "selection", "reporting"):
            _check_tags(data, getattr(splits, name), name)
        labels = read_labels(data, splits)

        def rows(table: Table) -> list[Row]:
            return _tokenise(data, table, labels, tokenizer, max_length)

        return cls(
            kind="token-classification",
            label_names=labels.names or (),
            metrics=_metrics(data, labels.names or ()),
            dataset=source(data),
            columns=(*data.text, data.label),
            max_length=max_length,
            pad_token_id=tokenizer.pad_token_id or 0,
            train=rows(splits.train),
            selection=rows(splits.selection),
            reporting=rows(splits.reporting),
            alphabetical=labels.alphabetical,
        )

    def _with_ids(self, labels: Any, new_ids: Sequence[int]) -> Any:
        return [label if label == IGNORED else new_ids[label] for label in labels]

    def score(self, outputs: Sequence[NDArray[Any]], rows: Sequence[Row]) -> dict[str, float]:
        """All metrics of a model's logits, (length, labels) each, on the words that have a tag."""
        tagged = [np.array(row["labels"]) != IGNORED for row in rows]
        references = [np.array(row["labels"])[words] for row, words in zip(rows, tagged, strict=True)]
        predictions = [each.argmax(-1)[words] for each, words in zip(outputs, tagged, strict=True)]
        return {
            name: metrics.compute(name, self._tags(predictions), self._tags(references))
            if name == "seqeval"
            else metrics.compute(name, *(np.concatenate(ids).tolist() for ids in (predictions, references)))
            for name in self.metrics
        }

    def _tags(self, rows: Sequence[NDArray[Any]]) -> list[list[str]]:
        names = [name.upper() for name in self.label_names]
        return [[names[index] for index in ids] for ids in rows]


def _metrics(data: DataSection, names: Sequence[str]) -> tuple[str, ...]:
    """F1 of spans and accuracy of words; the latter alone where tags mark no spans.

    Raises:
        InvalidInput: If there is no such metric, or it is for other tags.
        MissingPackage: If spans are to be scored, and seqeval isn't installed.
    """
    spans = "O" in map(str.upper, names) and all(_SPAN_TAG.fullmatch(name) for name in names)
    fitting = METRICS if spans else METRICS[1:]
    chosen = chosen_metrics(data.metric, METRICS[1:] if data.metric == "accuracy" else fitting, fitting)
    if "seqeval" in chosen:
        metrics.load_metric("seqeval")  # refuse to go on without its package before any work
    return chosen


def _check_tags(data: DataSection, table: Table, split: str) -> None:
    """A list of tags beside each list of words, of its length."""
    for row, (words, tags) in enumerate(zip(table[data.text[0]], table[data.label], strict=True)):
        if not isinstance(tags, list):
            raise InvalidInput(
                "data.label",
                f"{data.label} with {type(tags).__name__}",
                "token classification needs lists of tags, one a word",
                "Choose another column, or another data.task.",
            )
        if len(words) != len(tags):
            raise InvalidInput(
                "data.label",
                f"{len(tags)} tags beside {len(words)} words in row {row} of the {split} rows "
                f"({' '.join(words[:8])} ...)",
                "each word has one tag",
                "Mend or remove these rows.",
            )


def _tokenise(
    data: DataSection, table: Table, labels: Labels, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Row]:
    encoded = tokenizer(
        table[data.text[0]], is_split_into_words=True, truncation=True, max_length=max_length, verbose=False
    )
    return [
        {
            "input_ids": encoded["input_ids"][index],
            "labels": _on_first_tokens(tags, encoded.word_ids(index)),
            "index": index,
        }
        for index, tags in enumerate(labels.encode(table[data.label]))
    ]


def _on_first_tokens(tags: Sequence[int], words: Sequence[int | None]) -> list[int]:
    """Each word's tag on its first token; `words` says which word a token is of."""
    before = [None, *words[:-1]]
    return [
        IGNORED if word is None or word == previous else tags[word]
        for word, previous in zip(words, before, strict=True)
    ]
