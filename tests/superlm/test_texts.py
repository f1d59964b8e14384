"""Windows of streamed text."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from hf_kdnas.errors import InvalidInput
from hf_kdnas.recipe import DataSection
from hf_kdnas.superlm.texts import TextWindows

LENGTH = 8


def windows(tokenizer, path: Path | str, *, seed: int = 0, held_out: int = 3, **fields) -> TextWindows:
    data = DataSection(path=str(path), **{"reporting_split": "validation", **fields})
    return TextWindows(data, tokenizer, length=LENGTH, held_out=held_out, seed=seed)


def one_epoch(text: TextWindows, epoch: int = 0) -> list[tuple[int, ...]]:
    found = []
    for window, of, _ in text.training(epoch):
        if of > epoch:
            return found
        found.append(tuple(window))
    raise AssertionError("training ends nowhere")


def test_texts_are_joined_and_cut_into_windows_of_one_length(texts, tiny_tokenizer) -> None:
    cls, sep = tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id
    found = one_epoch(windows(tiny_tokenizer, texts / "text"))
    assert {len(window) for window in found} == {LENGTH}
    assert {(window[0], window[-1]) for window in found} == {(cls, sep)}
    joined = []
    for line in (texts / "text.train.txt").read_text(encoding="utf-8").splitlines():
        joined += [*tiny_tokenizer(line, add_special_tokens=False)["input_ids"], sep]
    size = LENGTH - 2
    whole = len(joined) // size * size
    expected = [(cls, *joined[at : at + size], sep) for at in range(0, whole, size)]
    assert sorted(found) == sorted(expected)


def test_the_order_is_drawn_for_each_epoch_by_the_seed(texts, tiny_tokenizer) -> None:
    text = windows(tiny_tokenizer, texts / "text")
    first, second = one_epoch(text), one_epoch(text, 1)
    assert sorted(first) == sorted(second)
    assert first != second
    assert first == one_epoch(windows(tiny_tokenizer, texts / "text"))
    assert first != one_epoch(windows(tiny_tokenizer, texts / "text", seed=1))


def test_training_goes_on_behind_any_place(texts, tiny_tokenizer) -> None:
    text = windows(tiny_tokenizer, texts / "text")
    size = len(one_epoch(text))
    whole = list(islice(text.training(), size + 5))
    for done in (1, size - 1, size, size + 2):
        *_, epoch, place = whole[done - 1]
        assert list(islice(text.training(epoch, place), 3)) == whole[done : done + 3]


def test_held_out_windows_are_another_splits_or_left_out_of_training(texts, tiny_tokenizer) -> None:
    apart = windows(tiny_tokenizer, texts / "text")
    within = windows(tiny_tokenizer, texts / "text", reporting_split=None)
    assert len(apart.held_out) == len(within.held_out) == 3
    everything = sorted(one_epoch(apart))
    assert sorted([*one_epoch(within), *map(tuple, within.held_out)]) == everything


@pytest.mark.parametrize("content", ["", "\n\n", "the film"], ids=["empty", "blank", "short"])
def test_text_without_a_window_is_refused(texts, tiny_tokenizer, content) -> None:
    (texts / "text.train.txt").write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInput, match="training text is too short for one window of 8 tokens"):
        windows(tiny_tokenizer, texts / "text")


def test_held_out_text_without_a_window_is_refused(texts, tiny_tokenizer) -> None:
    (texts / "text.validation.txt").write_text("the film", encoding="utf-8")
    with pytest.raises(InvalidInput, match="held-out text is too short"):
        windows(tiny_tokenizer, texts / "text")


def test_rows_without_text_are_left_out(texts, tiny_tokenizer) -> None:
    lines = [None, *(texts / "text.train.txt").read_text(encoding="utf-8").splitlines()]
    lines.insert(5, None)
    for split in ("train", "validation"):
        rows = "\n".join(json.dumps({"text": line}) for line in lines)
        (texts / f"rows.{split}.jsonl").write_text(rows, encoding="utf-8")
    found = one_epoch(windows(tiny_tokenizer, texts / "rows"))
    assert sorted(found) == sorted(one_epoch(windows(tiny_tokenizer, texts / "text")))


def test_a_text_that_is_held_out_as_a_whole_is_refused(texts, tiny_tokenizer) -> None:
    with pytest.raises(
        InvalidInput, match=r"superlm\.held_out: got 500; the text is \d+ windows of 8 tokens, and none"
    ):
        windows(tiny_tokenizer, texts / "text", reporting_split=None, held_out=500)


def test_columns_and_splits_that_are_not_there_are_refused(texts, tiny_tokenizer) -> None:
    (texts / "rows.train.csv").write_text("text,stars\nthe film,3\n", encoding="utf-8")
    (texts / "rows.validation.csv").write_text("text,stars\nthe film,3\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match="'review'; columns are text, stars"):
        windows(tiny_tokenizer, texts / "rows", text=["review"])
    with pytest.raises(InvalidInput, match="stars with int'; texts are needed"):
        windows(tiny_tokenizer, texts / "rows", text=["stars"])
    with pytest.raises(InvalidInput, match="'test'; splits are train, validation"):
        windows(tiny_tokenizer, texts / "rows", reporting_split="test")
