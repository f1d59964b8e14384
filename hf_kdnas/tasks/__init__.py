"""Tasks: rows of text, tokenised, in a training, a selection and a reporting split; one kind a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_kdnas.tables import load_splits
from hf_kdnas.tasks.answers import QuestionAnswering
from hf_kdnas.tasks.base import Row, TaskData
from hf_kdnas.tasks.classification import Classification
from hf_kdnas.tasks.inference import (
    by_length,
    evaluate_model,
    model_inputs,
    pad,
    predict,
    predict_onnx,
)
from hf_kdnas.tasks.masked import MaskedLanguageModelling
from hf_kdnas.tasks.sentences import SentenceEmbeddings
from hf_kdnas.tasks.tokens import TokenClassification

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_kdnas.recipe import DataSection

__all__ = [
    "TASKS",
    "Classification",
    "MaskedLanguageModelling",
    "QuestionAnswering",
    "Row",
    "SentenceEmbeddings",
    "TaskData",
    "TokenClassification",
    "by_length",
    "evaluate_model",
    "load_task",
    "model_inputs",
    "pad",
    "predict",
    "predict_onnx",
]

TASKS: dict[str, type[TaskData]] = {
    "text-classification": Classification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "fill-mask": MaskedLanguageModelling,
    "sentence-similarity": SentenceEmbeddings,
}
"""By the name that Transformers' pipelines and the Hub have for them."""


def load_task(
    data: DataSection, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None
) -> TaskData:
    """Read, split and tokenise the rows of a task.

    The splits depend on the data section alone (`split_seed`), not on a run's seed.

    Args:
        data: The recipe's data section.
        tokenizer: The teacher's tokenizer.
        max_length: Most tokens that the model takes; rows keep this or the recipe's `max_length`,
            whichever is less.

    Raises:
        InvalidInput: If data, split or column is missing, or the labels can't be read.
        MissingPackage: If `data.path` names a package that isn't installed.
    """
    length = min(data.max_length, max_length or data.max_length)
    return TASKS[data.task].load(data, load_splits(data), tokenizer, length)
