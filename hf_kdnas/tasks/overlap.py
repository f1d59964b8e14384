"""How far a predicted answer is a true one, by SQuAD's own rules (arXiv 1606.05250, section 6.1)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

METRICS = ("f1", "exact_match")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def overlap_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """SQuAD's F1 of words and exact match, both from 0 to 1, each against the nearest true answer.

    Args:
        predictions: A text a question; empty for none.
        references: The true answers of each; none where there is no answer.
    """
    pairs = [
        (_words(text), [_words(each) for each in true] or [[]])
        for text, true in zip(predictions, references, strict=True)
    ]
    return {
        "f1": float(np.mean([max(_f1(found, each) for each in true) for found, true in pairs])),
        "exact_match": float(np.mean([found in true for found, true in pairs])),
    }


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(found: Sequence[str], true: Sequence[str]) -> float:
    if not found or not true:
        return float(found == true)
    common = (Counter(found) & Counter(true)).total()
    return 2 * common / (len(found) + len(true))
