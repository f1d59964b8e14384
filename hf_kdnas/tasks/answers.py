"""Extractive question answering: the part of a context that answers a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_kdnas import metrics
from hf_kdnas.errors import InvalidInput
from hf_kdnas.tasks.base import Row, TaskData, chosen_metrics, source

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_kdnas.recipe import DataSection
    from hf_kdnas.tables import Splits, Table

METRICS = ("f1", "exact_match")

# Best starts and ends that are paired, and most tokens of an answer, as in Transformers' example.
N_BEST = 20
MAX_ANSWER_LENGTH = 30


@dataclass(frozen=True)
class QuestionAnswering(TaskData):
    """Windows of contexts, each after its question.

    A row has `start_positions` and `end_positions`, tokens of the answer, or of [CLS] where the window
    doesn't hold it; `example`, the question's place in its split; `offsets` (length, 2), the characters
    of the context that a token stands for, -1 outside the context; `context` and `answers`, the texts.

    Questions without any answer (SQuAD v2) are answered by the empty text, where [CLS] scores best.
    """

    head = "QuestionAnswering"

    @classmethod
    def load(
        cls, data: DataSection, splits: Splits, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> QuestionAnswering:
        """Question, context and answers, as in SQuAD."""
        for name in ("train", "selection", "reporting"):
            table = getattr(splits, name)
            _check_answers(data, table, name)
            _check_room(data, table, tokenizer, max_length)
        return cls(
            kind="question-answering",
            label_names=(),
            metrics=chosen_metrics(data.metric, METRICS, METRICS),
            dataset=source(data),
            columns=(*data.text, data.label),
            max_length=max_length,
            pad_token_id=tokenizer.pad_token_id or 0,
            train=_windows(data, splits.train, tokenizer, max_length),
            selection=_windows(data, splits.selection, tokenizer, max_length),
            reporting=_windows(data, splits.reporting, tokenizer, max_length),
        )

    def config_fields(self) -> dict[str, Any]:
        """Two outputs a token: start and end."""
        return {"num_labels": 2, "problem_type": None}

    def matched_to(self, config: PretrainedConfig) -> TaskData:
        """The same: such a head has no classes."""
        return self

    def examples(self, rows: Sequence[Row]) -> int:
        """Questions."""
        return len({row["example"] for row in rows})

    def score(self, outputs: Sequence[NDArray[Any]], rows: Sequence[Row]) -> dict[str, float]:
        """All metrics of the answers that start and end logits, (length, 2) each, come to."""
        windows: dict[int, list[tuple[NDArray[Any], Row]]] = {}
        for output, row in zip(outputs, rows, strict=True):
            windows.setdefault(row["example"], []).append((output, row))
        may_be_empty = any(not row["answers"] for row in (*self.train, *rows))
        predictions = [best_answer(each, may_be_empty=may_be_empty) for each in windows.values()]
        references = [each[0][1]["answers"] for each in windows.values()]
        scores = metrics.compute_all("squad", predictions, references)
        return {
            name: scores[name] if name in scores else metrics.compute(name, predictions, references)
            for name in self.metrics
        }


def best_answer(windows: Sequence[tuple[NDArray[Any], Row]], *, may_be_empty: bool) -> str:
    """The text of the highest start + end over an example's windows.

    Args:
        windows: Each with its logits, (length, 2), and its row.
        may_be_empty: Whether [CLS] may win. Its score is the lowest over the windows: most windows of a
            question that has an answer don't hold it.
    """
    best, text, empty = -np.inf, "", np.inf
    for logits, row in windows:
        empty = min(empty, logits[row["cls"]].sum())
        score, (start, end) = _best_span(logits, row["offsets"])
        if score > best:
            best, text = score, row["context"][start:end]
    return "" if may_be_empty and empty > best else text


def _best_span(logits: NDArray[Any], offsets: NDArray[np.int32]) -> tuple[float, tuple[int, int]]:
    """Score and characters of a window's best span inside the context; -inf where there is none."""
    starts, ends = (np.argsort(-logits[:, side])[:N_BEST] for side in (0, 1))
    first, last = starts[:, None], ends[None]
    inside = (offsets[first, 0] >= 0) & (offsets[last, 0] >= 0)
    valid = inside & (first <= last) & (last - first < MAX_ANSWER_LENGTH)
    scores = np.where(valid, logits[first, 0] + logits[last, 1], -np.inf)
    place = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[place]), (int(offsets[starts[place[0]], 0]), int(offsets[ends[place[1]], 1]))


def _check_answers(data: DataSection, table: Table, split: str) -> None:
    """Answers as in SQuAD, each where it says it is."""
    for row, (context, answers) in enumerate(zip(table[data.text[1]], table[data.label], strict=True)):
        if not _are_answers(answers):
            raise InvalidInput(
                "data.label",
                f"{data.label} with {answers!r:.80} in row {row} of the {split} rows",
                "question answering needs answers as in SQuAD, {text: [...], answer_start: [...]}",
                "Choose another column, or another data.task.",
            )
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            if not text or context[start : start + len(text)] != text:
                raise InvalidInput(
                    "data.label",
                    f"the answer {text!r} in row {row} of the {split} rows",
                    f"at character {start} its context has {context[start : start + len(text)]!r}",
                    "Mend answer_start, counted in characters from 0.",
                )


def _are_answers(answers: Any) -> bool:
    if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= answers.keys():
        return False
    texts, starts = answers["text"], answers["answer_start"]
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return False
    return all(isinstance(text, str) for text in texts) and all(
        isinstance(start, int) and start >= 0 for start in starts
    )


def _check_room(data: DataSection, table: Table, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """A window must hold its question, the overlap with the one before, and something new."""
    questions = _questions(data, table)
    encoded = tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"]
    sizes = [len(ids) for ids in encoded]
    longest = max(sizes)
    room = max_length - longest - tokenizer.num_special_tokens_to_add(pair=True)
    if room <= data.stride:
        raise InvalidInput(
            "data.stride",
            data.stride,
            f"of {max_length} tokens the longest question, of {longest}, leaves {max(0, room)} for its "
            f"context ({questions[sizes.index(longest)]!r:.60})",
            "Overlap by fewer tokens, or raise data.max_length (at most what the teacher takes).",
        )


def _questions(data: DataSection, table: Table) -> list[str]:
    return [question.lstrip() for question in table[data.text[0]]]


def _windows(
    data: DataSection, table: Table, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Row]:
    contexts, answers = table[data.text[1]], table[data.label]
    encoded = tokenizer(
        _questions(data, table),
        contexts,
        truncation="only_second",
        max_length=max_length,
        stride=data.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    rows = []
    for index, example in enumerate(encoded["overflow_to_sample_mapping"]):
        ids = encoded["input_ids"][index]
        offsets = np.array(encoded["offset_mapping"][index], np.int32)
        offsets[[part != 1 for part in encoded.sequence_ids(index)]] = -1
        cls = ids.index(tokenizer.cls_token_id)
        start, end = _positions(offsets, answers[example], cls)
        row = {
            "input_ids": ids,
            "start_positions": start,
            "end_positions": end,
            "index": index,
            "example": example,
            "cls": cls,
            "offsets": offsets,
            "context": contexts[example],
            "answers": answers[example]["text"],
        }
        if "token_type_ids" in encoded:
            row["token_type_ids"] = encoded["token_type_ids"][index]
        rows.append(row)
    return rows


def _positions(offsets: NDArray[np.int32], answers: Mapping[str, Any], cls: int) -> tuple[int, int]:
    """First and last token of the first answer, or `cls` twice where the window doesn't hold all of it."""
    if not answers["text"]:
        return cls, cls
    first = answers["answer_start"][0]
    last = first + len(answers["text"][0])
    touched = np.flatnonzero((offsets[:, 0] >= 0) & (offsets[:, 0] < last) & (offsets[:, 1] > first))
    inside = offsets[offsets[:, 0] >= 0]
    if not len(touched) or inside[0, 0] > first or inside[-1, 1] < last:
        return cls, cls
    return int(touched[0]), int(touched[-1])
