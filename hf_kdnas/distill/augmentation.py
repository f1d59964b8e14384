"""Texts made of the training texts, which only the teacher answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_kdnas.errors import InvalidInput

if TYPE_CHECKING:
    from hf_kdnas.tasks import Row

# What a row keeps beside texts that have no labels.
_INPUTS = ("input_ids", "token_type_ids", "index")


def with_spliced(
    rows: Sequence[Row], copies: int, replaced: float, max_length: int, seed: int
) -> Sequence[Row]:
    """Rows, and after them texts that begin as one of them and end as another.

    Where training texts are few or short, a student learns their answers and not what its teacher does with
    a new one; texts that nobody wrote serve as well to tell it (data augmentation for distillation: Tang et
    al. 2019, arXiv 1903.12136, section 3.3; TinyBERT has its own). Long texts are drawn more often, each in
    proportion to its tokens, and cut anywhere.

    Args:
        rows: Single texts between the tokenizer's two special tokens.
        copies: How many texts to make for each row; 0 returns the rows as they are.
        replaced: Probability with which a token gives way to one drawn from all rows.
        max_length: Most tokens of a text.
        seed: Decides the draws.

    Returns:
        All of them, none with a label, their `index` counted on.

    Raises:
        InvalidInput: If the texts are not between two special tokens.
    """
    if not copies:
        return rows
    ends = {(row["input_ids"][0], row["input_ids"][-1]) for row in rows}
    if len(ends) > 1:
        raise InvalidInput(
            "distillation.augmentation.copies",
            copies,
            "the tokenizer must put the same token before every text, and one after it",
            "Set it to 0.",
        )
    [(first, last)] = ends
    texts = [np.asarray(row["input_ids"][1:-1]) for row in rows]
    tokens, ending = np.concatenate(texts), np.cumsum([len(text) for text in texts])
    rng = np.random.default_rng(seed)
    made: list[Row] = [{name: row[name] for name in _INPUTS if name in row} for row in rows]
    # A token drawn from all is one of a long text more often than of a short one.
    drawn = np.searchsorted(ending, rng.integers(len(tokens), size=(copies * len(rows), 2)), side="right")
    for head, tail in drawn:
        opening = texts[head][: rng.integers(1, len(texts[head]) + 1)]
        closing = texts[tail][rng.integers(len(texts[tail])) :]
        text = np.concatenate([opening, closing])[: max_length - 2]
        others = rng.random(len(text)) < replaced
        text[others] = tokens[rng.integers(len(tokens), size=others.sum())]
        row: Row = {"input_ids": [first, *text.tolist(), last], "index": len(made)}
        if "token_type_ids" in made[0]:
            row["token_type_ids"] = [0] * len(row["input_ids"])
        made.append(row)
    return made
