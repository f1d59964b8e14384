"""Figures of published models on GLUE's validation splits, in percent, as their sources print them."""

from __future__ import annotations

from dataclasses import dataclass

_TASKS = ("mnli", "qqp", "qnli", "sst2", "cola", "mrpc", "rte")

# https://arxiv.org/abs/2002.10957; the smallest is in https://github.com/microsoft/unilm/tree/master/minilm
_MINILM = "MiniLM, arXiv 2002.10957"
_AUTODISTIL = "AutoDistil, arXiv 2201.12507"


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        name: The model's.
        millions: Of parameters.
        scores: By task, one figure each: of MNLI the matched split. Where GLUE has two metrics, what stands
            in a source's only column for the task is taken as accuracy, or for CoLA Matthews' correlation.
        source: Where the figures were printed.
    """

    name: str
    millions: float
    scores: dict[str, float]
    source: str


def _row(name: str, millions: float, source: str, *scores: float) -> Published:
    return Published(name, millions, dict(zip(_TASKS, scores, strict=True)), source)


PUBLISHED = (
    _row("BERT-base", 109, _MINILM, 84.5, 91.3, 91.7, 93.2, 58.9, 87.3, 68.6),
    _row("DistilBERT", 66, _MINILM, 82.2, 88.5, 89.2, 91.3, 51.3, 87.5, 59.9),
    _row("TinyBERT-6", 66, _MINILM, 83.5, 90.6, 90.5, 91.6, 42.8, 88.4, 72.2),
    _row("MiniLM 6x768", 66, _MINILM, 84.0, 91.0, 91.0, 92.0, 49.2, 88.4, 71.5),
    _row("MiniLM 6x384", 22, f"{_MINILM}, its repository", 83.3, 90.6, 90.5, 91.5, 47.5, 88.9, 68.8),
    _row(
        "NAS-BERT 60",
        60,
        "NAS-BERT, arXiv 2105.14444, with data augmentation",
        *(84.8, 91.2, 91.9, 93.1, 58.7, 88.9, 79.8),
    ),
    _row(
        "AutoTinyBERT KD-S1",
        30,
        "AutoTinyBERT, arXiv 2107.13686",
        *(82.3, 89.7, 89.9, 91.4, 47.3, 88.5, 71.1),
    ),
    _row("AutoDistil ProxyB", 50.1, _AUTODISTIL, 83.8, 91.1, 90.8, 91.1, 55.0, 88.8, 71.9),
    _row("AutoDistil ProxyS", 26.1, _AUTODISTIL, 83.2, 90.6, 90.0, 90.1, 48.3, 88.3, 69.4),
    _row("AutoDistil ProxyT", 6.9, _AUTODISTIL, 79.0, 89.1, 86.4, 85.9, 24.8, 78.5, 64.3),
)
