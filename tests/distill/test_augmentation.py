from __future__ import annotations

from collections import Counter

import pytest

from hf_kdnas.distill.augmentation import with_spliced
from hf_kdnas.errors import InvalidInput

CLS, SEP = 2, 3
ROWS = [
    {"input_ids": [CLS, *range(10, 30), SEP], "labels": 1, "index": 0, "token_type_ids": [0] * 22},
    {"input_ids": [CLS, *range(30, 35), SEP], "labels": 0, "index": 1, "token_type_ids": [0] * 7},
    {"input_ids": [CLS, SEP], "labels": 0, "index": 2, "token_type_ids": [0] * 2},
]


def test_no_copies_leave_the_rows_and_their_labels():
    assert with_spliced(ROWS, 0, 0.5, 128, seed=0) is ROWS


def test_a_made_text_begins_as_one_and_ends_as_another():
    found = with_spliced(ROWS, 100, 0.0, 128, seed=0)
    assert [row["input_ids"] for row in found[:3]] == [row["input_ids"] for row in ROWS]
    assert [row["index"] for row in found] == list(range(len(found)))
    assert len(found) == 303
    assert all("labels" not in row and len(row["token_type_ids"]) == len(row["input_ids"]) for row in found)
    heads = Counter()
    for row in found[3:]:
        first, *text, last = row["input_ids"]
        assert (first, last) == (CLS, SEP)
        jumps = [place for place in range(1, len(text)) if text[place] != text[place - 1] + 1]
        assert text[0] in (10, 30)
        assert text[-1] in (29, 34)
        assert len(jumps) <= 1
        heads[text[0]] += 1
    assert heads[10] > 2 * heads[30]  # four times as long, so drawn four times as often


def test_tokens_are_replaced_by_others_of_the_rows():
    found = with_spliced(ROWS, 200, 0.5, 128, seed=0)[3:]
    tokens = [token for row in found for token in row["input_ids"][1:-1]]
    assert set(tokens) == set(range(10, 35))
    plain = with_spliced(ROWS, 200, 0.0, 128, seed=0)[3:]
    assert all(row["input_ids"][1] in (10, 30) for row in plain)
    changed = sum(row["input_ids"][1] not in (10, 30) for row in found) / len(found)
    assert 0.35 < changed < 0.6


def test_the_draws_follow_from_the_seed_and_no_text_is_too_long():
    found = with_spliced(ROWS, 5, 0.1, 12, seed=3)
    assert found == with_spliced(ROWS, 5, 0.1, 12, seed=3)
    assert found != with_spliced(ROWS, 5, 0.1, 12, seed=4)
    assert max(len(row["input_ids"]) for row in found[3:]) == 12


def test_other_frames_are_refused():
    with pytest.raises(InvalidInput, match="the same token before every text"):
        with_spliced([*ROWS, {"input_ids": [9, 8, 7], "index": 3}], 1, 0.0, 128, seed=0)
