"""SQuAD's F1 and exact match, as a module for `evaluate.load`, without the network."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate

from hf_kdnas.errors import InvalidInput
from hf_kdnas.metrics.base import OfflineMetric

_DESCRIPTION = """F1 of words and exact match of answers, each with the nearest true answer; both from 0 to 1.

As evaluate-v2.0.py, the official script of SQuAD 2.0, counts (from 0 to 100 there). That of SQuAD 1.1 differs
only where an answer has no words but articles.
"""

_CITATION = (
    "SQuAD 1.1: Rajpurkar et al., arXiv 1606.05250; SQuAD 2.0: Rajpurkar, Jia and Liang, arXiv 1806.03822"
)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Squad(OfflineMetric):
    """F1 and exact match of answers, also where the right answer is none."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description="predictions: an answer per question, '' for none; references: per question "
            "a list of true answers, [] where there is none",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
            reference_urls=["https://rajpurkar.github.io/SQuAD-explorer/"],
        )

    def _check(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        for row, (text, answers) in enumerate(zip(predictions, references, strict=True)):
            if not isinstance(text, str):
                raise InvalidInput(
                    "predictions", f"{text!r} in row {row}", "each row is a text", "Give '' for no answer."
                )
            if not isinstance(answers, list | tuple) or not all(isinstance(each, str) for each in answers):
                raise InvalidInput(
                    "references",
                    f"{answers!r} in row {row}",
                    "each row is a list of texts",
                    "Give all true answers, answers['text'] of SQuAD, and [] where there is none.",
                )

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        scores = [
            _scores(words(text), [words(each) for each in answers])
            for text, answers in zip(predictions, references, strict=True)
        ]
        f1, exact = (sum(each) / len(scores) for each in zip(*scores, strict=True))
        return {"f1": f1, "exact_match": exact}


def words(text: str) -> list[str]:
    """The words that count: in lower case, without punctuation, then without articles.

    Args:
        text: An answer.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _scores(found: list[str], answers: list[list[str]]) -> tuple[float, float]:
    """F1 and exact match with the nearest answer; one without words is none, as in the script."""
    true = [each for each in answers if each] or [[]]
    return max(_f1(found, each) for each in true), float(found in true)


def _f1(found: list[str], true: list[str]) -> float:
    if not found or not true:
        return float(found == true)
    return 2 * (Counter(found) & Counter(true)).total() / (len(found) + len(true))
