"""A task's rows through a model: in batches, on PyTorch or on ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hf_kdnas.tasks.base import Row, TaskData

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PreTrainedModel


# Names of the outputs that count: of a question answering head the two in the middle, of an encoder the last.
OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")

Reduce: TypeAlias = "Callable[[NDArray[Any], Row], NDArray[Any]]"


def by_length(rows: Sequence[Row], batch_size: int) -> list[list[int]]:
    """Positions of the rows in batches of similar length, the longest first."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pad(
    sequences: Sequence[Sequence[int]], value: int, length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Right-pad sequences, and say where they are.

    Args:
        sequences: Token ids or the like.
        value: What stands in the padding.
        length: Length to pad to, at least the longest sequence's.

    Returns:
        The padded sequences and their attention mask, both (batch, length).
    """
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    mask = np.arange(length) < lengths[:, None]
    padded = np.full(mask.shape, value, dtype=np.int64)
    padded[mask] = np.concatenate(sequences)
    return padded, mask.astype(np.int64)


def model_inputs(rows: Sequence[Row], pad_token_id: int) -> dict[str, NDArray[np.int64]]:
    """Model inputs of some rows, padded on the right: each (batch, length)."""
    ids = [row["input_ids"] for row in rows]
    length = max(map(len, ids))
    inputs = dict(zip(("input_ids", "attention_mask"), pad(ids, pad_token_id, length), strict=True))
    if "token_type_ids" in rows[0]:
        inputs["token_type_ids"], _ = pad([row["token_type_ids"] for row in rows], 0, length)
    return inputs


def _whole(output: NDArray[Any], row: Row) -> NDArray[Any]:
    return output


def predict(
    model: PreTrainedModel,
    rows: Sequence[Row],
    *,
    batch_size: int = 64,
    precision: str = "fp32",
    reduce: Reduce = _whole,
) -> list[NDArray[Any]]:
    """A model's outputs of each row, in the order of the rows.

    They are logits: (labels,) of a classification, (length, labels) of token classification and masked
    language modelling, (length, 2) of question answering: start and end; of a model without a head the
    states (length, hidden) after its last layer.

    Args:
        model: Any model with a task head; used on the device where it is, and put back into the mode
            (training or not) that it was in.
        rows: Tokenised rows.
        batch_size: Rows in a batch.
        precision: As in a training section: auto, fp32, bf16 or fp16.
        reduce: What is kept of a row's output, so that no more is.
    """
    import torch

    from hf_kdnas.precision import autocast

    found: dict[int, NDArray[Any]] = {}
    was_training = model.training
    model.train(False)
    with torch.inference_mode(), autocast(model.device, precision):
        for batch in by_length(rows, batch_size):
            inputs = model_inputs([rows[index] for index in batch], model.config.pad_token_id or 0)
            tensors = {name: torch.from_numpy(value).to(model.device) for name, value in inputs.items()}
            outputs = model(**tensors)
            logits = {name: outputs[name].float().cpu().numpy() for name in OUTPUTS if name in outputs}
            for index, output in zip(batch, _of_rows(logits, inputs["attention_mask"]), strict=True):
                found[index] = reduce(output, rows[index])
    model.train(was_training)
    return [found[index] for index in range(len(rows))]


def predict_onnx(
    path: Path,
    rows: Sequence[Row],
    *,
    pad_token_id: int = 0,
    batch_size: int = 1,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    reduce: Reduce = _whole,
) -> list[NDArray[Any]]:
    """An ONNX model's outputs of each row, in the order of the rows, as `predict` gives them.

    Args:
        path: The model file.
        rows: Tokenised rows.
        pad_token_id: Fills up shorter rows.
        batch_size: Rows in a batch. Dynamic INT8 scales activations by the whole batch, padding
            included, so one by one is what its users get.
        threads: Threads inside an operator.
        provider: ONNX Runtime execution provider.
        reduce: As for `predict`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    expected = {each.name for each in session.get_inputs()}
    outputs = [each.name for each in session.get_outputs() if each.name in OUTPUTS]
    found: dict[int, NDArray[Any]] = {}
    for batch in by_length(rows, batch_size):
        inputs = _with_types(model_inputs([rows[index] for index in batch], pad_token_id), expected)
        logits = dict(zip(outputs, session.run(outputs, inputs), strict=True))
        for index, output in zip(batch, _of_rows(logits, inputs["attention_mask"]), strict=True):
            found[index] = reduce(output, rows[index])
    return [found[index] for index in range(len(rows))]


def _of_rows(logits: Mapping[str, NDArray[Any]], mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Each row's part of a batch's outputs, without padding."""
    both = [logits[name] for name in OUTPUTS[1:3] if name in logits]
    values = np.stack(both, -1) if both else next(logits[name] for name in OUTPUTS if name in logits)
    if values.ndim == 2:
        return list(values.astype(np.float32))
    return [row[:size].astype(np.float32) for row, size in zip(values, mask.sum(1), strict=True)]


def _with_types(inputs: Mapping[str, NDArray[np.int64]], expected: set[str]) -> dict[str, NDArray[np.int64]]:
    """The inputs that a graph asks for; token types are 0 where the rows have none."""
    return {name: inputs.get(name, np.zeros_like(inputs["input_ids"])) for name in expected}


def evaluate_model(
    model: PreTrainedModel,
    rows: Sequence[Row],
    task: TaskData,
    *,
    precision: str = "fp32",
) -> dict[str, float]:
    """All metrics of a model on some rows; not numbers where an output is not finite: it diverged.

    Args:
        model: A model with this task's head.
        rows: Rows of the task, such as `task.selection`.
        task: Says which metrics.
        precision: As in a training section: auto, fp32, bf16 or fp16.
    """
    finite = True

    def reduced(output: NDArray[Any], row: Row) -> NDArray[Any]:
        nonlocal finite
        finite = finite and bool(np.isfinite(output).all())
        return task.reduced(output, row)

    outputs = predict(model, rows, batch_size=task.evaluation_batch_size, precision=precision, reduce=reduced)
    return task.score(outputs, rows) if finite else dict.fromkeys(task.metrics, math.nan)
