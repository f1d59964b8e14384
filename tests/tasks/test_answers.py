"""Question answering: windows, spans, SQuAD's scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering

from hf_kdnas.content import rows_hash
from hf_kdnas.errors import InvalidInput
from hf_kdnas.recipe import DataSection
from hf_kdnas.tasks import QuestionAnswering, TaskData, evaluate_model, load_task, predict
from hf_kdnas.tasks.answers import best_answer

LONG = "the film was a very long story of the scene and the plot with a warm ending but so dull"


def row(context: str, answer: str | None, question: str = "was it good", **more: Any) -> dict[str, Any]:
    texts = [] if answer is None else [answer]
    answers = {"text": texts, "answer_start": [context.index(text) for text in texts]}
    return {"question": question, "context": context, "answers": answers, **more}


ROWS = [row(LONG, "warm ending"), row("a fine film", "fine"), row("it was so-so, awful", "so-so")]


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> DataSection:
    path.write_text("\n".join(json.dumps(each) for each in rows), encoding="utf-8")
    return DataSection(path=str(path), task="question-answering", **options)


@pytest.fixture
def task(tmp_path: Path, tiny_tokenizer: Any) -> TaskData:
    return load_task(write(tmp_path / "rows.jsonl", ROWS * 20, max_length=16, stride=4), tiny_tokenizer)


def test_windows_overlap_and_point_at_the_answer_or_cls(task: TaskData, tiny_tokenizer: Any) -> None:
    of_the_long = [each for each in task.train if each["context"] == LONG]
    example = [each for each in of_the_long if each["example"] == of_the_long[0]["example"]]
    texts = [tiny_tokenizer.decode(each["input_ids"]).split("[SEP]")[1].split() for each in example]
    # 16 tokens less [CLS], the question's 3 and two [SEP] leave 10; each window begins 10 - 4 later.
    assert texts == [LONG.split()[start : start + 10] for start in (0, 6, 12)]
    held = [each for each in example if each["start_positions"]]
    assert held
    for each in held:
        span = slice(each["start_positions"], each["end_positions"] + 1)
        assert tiny_tokenizer.decode(each["input_ids"][span]) == "warm ending"
    for each in example:
        whole = "warm ending" in tiny_tokenizer.decode(each["input_ids"])
        assert (each["start_positions"] > 0) == (each["end_positions"] > 0) == whole
    assert task.examples(example) == 1


def test_offsets_are_those_of_the_context_alone(task: TaskData) -> None:
    for each in task.train:
        inside = each["offsets"][:, 0] >= 0
        assert len(inside) == len(each["input_ids"])
        assert not inside[:5].any()  # [CLS], the question and [SEP]
        assert not inside[-1]
        if each["start_positions"]:
            start = each["offsets"][each["start_positions"], 0]
            end = each["offsets"][each["end_positions"], 1]
            assert each["context"][start:end] == each["answers"][0]


def test_no_example_and_no_group_is_on_two_sides(tmp_path: Path, tiny_tokenizer: Any) -> None:
    rows = [row(f"{LONG} {'good ' * (index // 4)}", "plot", title=f"t{index // 4}") for index in range(60)]
    data = write(tmp_path / "rows.jsonl", rows, max_length=16, stride=4, group="title")
    task = load_task(data, tiny_tokenizer)
    sides = [{each["context"] for each in part} for part in (task.train, task.selection, task.reporting)]
    assert len(set.union(*sides)) == sum(map(len, sides))
    assert sum(task.examples(part) for part in (task.train, task.selection, task.reporting)) == 60
    assert [each["index"] for each in task.train] == list(range(len(task.train)))


def logits_at(each: dict[str, Any], *spans: tuple[int, int, float]) -> Any:
    """Logits of a window where each (start, end) has a value at both sides, and others have 0."""
    logits = np.zeros((len(each["input_ids"]), 2), np.float32)
    for start, end, value in spans:
        logits[start, 0] = logits[end, 1] = value
    return logits


def window(context: str, before: int = 0) -> dict[str, Any]:
    """A window of 2 question tokens and the context's words, one a token."""
    offsets, place = [[-1, -1]] * 4, 0
    for word in context.split():
        offsets.append([place + before, place + before + len(word)])
        place += len(word) + 1
    offsets.append([-1, -1])
    return {"input_ids": [1] * len(offsets), "cls": 0, "offsets": np.array(offsets, np.int32)}


def test_the_best_span_over_all_windows_wins() -> None:
    context = "one two three four five"
    first = window("one two three") | {"context": context}
    second = window("three four five", 8) | {"context": context}
    outputs = [(logits_at(first, (5, 6, 2.0)), first), (logits_at(second, (5, 5, 3.0)), second)]
    assert best_answer(outputs, may_be_empty=False) == "four"
    assert best_answer(outputs[:1], may_be_empty=False) == "two three"


@pytest.mark.parametrize("span", [(1, 2), (6, 4), (2, 5), (4, 7)])
def test_spans_that_are_none_are_passed_over(span: tuple[int, int]) -> None:
    """In the question, backwards, from the question into the context, and up to [SEP]."""
    each = window("one two three") | {"context": "one two three"}
    logits = logits_at(each, (*span, 9.0))
    logits[5] = 8.0
    assert "two" in best_answer([(logits, each)], may_be_empty=False)


def test_an_answer_has_30_tokens_at_most() -> None:
    context = " ".join(["word"] * 40)
    each = window(context) | {"context": context}
    sizes = {}
    for size in (30, 31):
        logits = logits_at(each, (4, 4 + size - 1, 5.0))
        logits[10] = 4.0
        sizes[size] = len(best_answer([(logits, each)], may_be_empty=False).split())
    assert sizes[30] == 30
    assert sizes[31] < 30


def test_no_answer_wins_where_cls_scores_best_in_every_window() -> None:
    each = window("one two three") | {"context": "one two three"}
    sure, unsure = logits_at(each, (0, 0, 5.0), (5, 5, 4.0)), logits_at(each, (0, 0, 1.0))
    assert best_answer([(sure, each)], may_be_empty=True) == ""
    assert best_answer([(sure, each)], may_be_empty=False) == "two"
    assert best_answer([(sure, each), (unsure, each)], may_be_empty=True) == "two"


def test_a_model_that_points_right_scores_1(tmp_path: Path, tiny_tokenizer: Any) -> None:
    rows = [*ROWS, row("the plot was weak", None)] * 15
    task = load_task(write(tmp_path / "rows.jsonl", rows, max_length=16, stride=4), tiny_tokenizer)
    right = [logits_at(each, (each["start_positions"], each["end_positions"], 5.0)) for each in task.train]
    assert task.score(right, task.train) == {"f1": 1.0, "exact_match": 1.0}
    assert task.metric == "f1"


def test_predictions_are_starts_and_ends(task: TaskData, tiny_bert_config: Any) -> None:
    tiny_bert_config.update(task.config_fields())
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(tiny_bert_config).eval()
    for each, logits in zip(task.selection, predict(model, task.selection, batch_size=7), strict=True):
        inputs = {name: torch.tensor([each[name]]) for name in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            alone = model(**inputs)
        np.testing.assert_allclose(logits[:, 0], alone.start_logits[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(logits[:, 1], alone.end_logits[0].numpy(), atol=1e-5)
    assert evaluate_model(model, task.selection, task).keys() == {"f1", "exact_match"}
    assert isinstance(task, QuestionAnswering)


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"answers": {"text": ["fine"], "answer_start": [3]}}, {}, "at character 3 its context has"),
        ({"answers": {"text": ["fine"], "answer_start": []}}, {}, "needs answers as in SQuAD"),
        ({}, {"label": "context", "text": ["question", "title"]}, "needs answers as in SQuAD"),
        ({}, {"metric": "accuracy"}, "scored by f1, exact_match"),
        ({}, {"metric": "exact"}, "data.metric"),
        ({"question": "was it good " * 9}, {"max_length": 32}, "of 32 tokens the longest question, of 27"),
        ({}, {"max_length": 64, "stride": 60}, "leaves 58 for its context"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, tiny_tokenizer: Any, changed: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    rows = [row("a fine film", "fine", title="t") | changed for _ in range(40)]
    data = dataclasses.replace(write(tmp_path / "rows.jsonl", rows, stride=4), **options)
    with pytest.raises(InvalidInput, match=message):
        load_task(data, tiny_tokenizer)


@pytest.mark.parametrize("changed", ["start_positions", "end_positions", "answers"])
def test_other_answers_are_other_rows(task: TaskData, changed: str) -> None:
    """Fine-tuned teachers are kept by the hash of their rows."""
    first, *rest = task.train
    other = {**first, changed: ["plot"] if changed == "answers" else first[changed] + 1}
    assert rows_hash([other, *rest]) != rows_hash(task.train)
