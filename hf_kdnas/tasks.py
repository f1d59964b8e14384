"""The task: rows of text with labels, tokenised, in a training, a selection and a reporting split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hf_kdnas import metrics
from hf_kdnas.errors import InvalidInput
from hf_kdnas.tables import Labels, Table, load_splits, read_labels

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_kdnas.recipe import DataSection

Row: TypeAlias = dict[str, Any]
"""`input_ids`, `token_type_ids` (pairs of texts), `labels`, and `index` within the split."""

CLASSIFICATION = "single_label_classification"
REGRESSION = "regression"


@dataclass(frozen=True)
class TaskData:
    """A task and its rows.

    Selection rows are held out from the training split, to choose students by; reporting rows are
    for the report alone.

    Attributes:
        kind: Transformers' `problem_type`: `single_label_classification` or `regression`.
        label_names: Class names in the order of their ids; empty for a regression.
        metrics: Names of the metrics; the first is the one to select by.
        dataset: Where the rows are from, as the recipe says it.
        columns: The text columns and the label column.
        max_length: Most tokens of a row.
        pad_token_id: The tokenizer's.
        train: Rows to learn from.
        selection: Rows to choose by.
        reporting: Rows to report on.
    """

    kind: str
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    dataset: str
    columns: tuple[str, ...]
    max_length: int
    pad_token_id: int
    train: list[Row]
    selection: list[Row]
    reporting: list[Row]

    @property
    def metric(self) -> str:
        """The metric to select by."""
        return self.metrics[0]

    @property
    def num_labels(self) -> int:
        """Width of the task head."""
        return len(self.label_names) or 1

    @property
    def head_class(self) -> Any:
        """The Auto class with this task's head."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def config_fields(self) -> dict[str, Any]:
        """What this task sets in a model's config."""
        names = self.label_names or ("LABEL_0",)
        return {
            "num_labels": self.num_labels,
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": self.kind,
        }

    def matched_to(self, config: PretrainedConfig) -> TaskData:
        """The task with its class ids in the order of a model's own head.

        Where the head names its classes (other than LABEL_0 ...), names decide, without regard to
        case; a head or data set without names is taken by the ids.

        Raises:
            InvalidInput: If the head has another number of outputs or other names.
        """
        names = config.id2label or {}
        head = tuple(names[index] for index in range(config.num_labels))
        if len(head) != self.num_labels:
            wanted = (
                f"{self.num_labels} classes ({', '.join(self.label_names)})"
                if self.label_names
                else "a score"
            )
            raise InvalidInput(
                "teacher.model",
                f"a head with {len(head)} outputs ({', '.join(head)})",
                f"the data have {wanted}",
                "Choose a teacher of this task, or set teacher.fine_tune to train a new head.",
            )
        if self.kind == REGRESSION or head == tuple(f"LABEL_{index}" for index in range(len(head))):
            return self
        if self.label_names == tuple(map(str, range(len(head)))):
            return dataclasses.replace(self, label_names=head)
        positions = {name.casefold(): index for index, name in enumerate(head)}
        if {name.casefold() for name in self.label_names} != set(positions):
            raise InvalidInput(
                "data.labels",
                list(self.label_names),
                f"the teacher's head has {', '.join(head)}",
                "Set data.labels to the head's names, in the order of the data's class ids.",
            )
        return self._renumbered([positions[name.casefold()] for name in self.label_names], head)

    def _renumbered(self, new_ids: Sequence[int], names: tuple[str, ...]) -> TaskData:
        def renumber(rows: list[Row]) -> list[Row]:
            return [{**row, "labels": new_ids[row["labels"]]} for row in rows]

        return dataclasses.replace(
            self,
            label_names=names,
            train=renumber(self.train),
            selection=renumber(self.selection),
            reporting=renumber(self.reporting),
        )

    def score(self, logits: NDArray[np.floating[Any]], rows: Sequence[Row]) -> dict[str, float]:
        """All metrics of a model's outputs.

        Args:
            logits: (rows, labels).
            rows: The rows they belong to.
        """
        references = [row["labels"] for row in rows]
        predictions = (logits[:, 0] if self.kind == REGRESSION else logits.argmax(-1)).tolist()
        macro = {"average": "macro"} if self.num_labels > 2 else {}
        return {
            name: metrics.compute(name, predictions, references, **(macro if name == "f1" else {}))
            for name in self.metrics
        }


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
    splits = load_splits(data)
    labels = read_labels(data, splits)
    length = min(data.max_length, max_length or data.max_length)

    def rows(table: Table) -> list[Row]:
        return _tokenise(data, table, labels, tokenizer, length)

    return TaskData(
        kind=REGRESSION if labels.names is None else CLASSIFICATION,
        label_names=labels.names or (),
        metrics=_metrics(data, labels),
        dataset=data.path if data.name is None else f"{data.path} ({data.name})",
        columns=(*data.text, data.label),
        max_length=length,
        pad_token_id=tokenizer.pad_token_id or 0,
        train=rows(splits.train),
        selection=rows(splits.selection),
        reporting=rows(splits.reporting),
    )


def _metrics(data: DataSection, labels: Labels) -> tuple[str, ...]:
    """The metric asked for and the usual ones of this kind of task."""
    usual = ("pearson", "spearman") if labels.names is None else ("accuracy",)
    if data.metric is not None:
        metrics.load_metric(data.metric)  # refuse an unknown one before any work
        return (data.metric, *(name for name in usual if name != data.metric))
    glue = data.path.removeprefix("data:glue/") if data.path.startswith("data:glue/") else data.name
    is_glue = data.path.startswith("data:glue/") or data.path in ("nyu-mll/glue", "glue")
    return metrics.GLUE_METRICS.get(glue or "", usual) if is_glue else usual


def _tokenise(
    data: DataSection, table: Table, labels: Labels, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Row]:
    encoded = tokenizer(
        *(table[column] for column in data.text), truncation=True, max_length=max_length, verbose=False
    )
    names = ["input_ids"]
    if len(data.text) == 2 and "token_type_ids" in encoded:
        names.append("token_type_ids")
    ids = labels.encode(table[data.label])
    return [
        {**{name: encoded[name][index] for name in names}, "labels": label, "index": index}
        for index, label in enumerate(ids)
    ]


def by_length(rows: Sequence[Row], batch_size: int) -> list[list[int]]:
    """Positions of the rows in batches of similar length, the longest first."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pad(rows: Sequence[Row], pad_token_id: int) -> dict[str, NDArray[np.int64]]:
    """Model inputs of some rows, padded on the right: each (batch, length)."""
    shape = (len(rows), max(len(row["input_ids"]) for row in rows))
    inputs = {"input_ids": np.full(shape, pad_token_id), "attention_mask": np.zeros(shape, np.int64)}
    if "token_type_ids" in rows[0]:
        inputs["token_type_ids"] = np.zeros(shape, np.int64)
    for position, row in enumerate(rows):
        size = len(row["input_ids"])
        inputs["input_ids"][position, :size] = row["input_ids"]
        inputs["attention_mask"][position, :size] = 1
        if "token_type_ids" in inputs:
            inputs["token_type_ids"][position, :size] = row["token_type_ids"]
    return inputs


def predict(
    model: PreTrainedModel, rows: Sequence[Row], *, batch_size: int = 64, precision: str = "fp32"
) -> NDArray[np.float32]:
    """A model's logits, (rows, labels), in the order of the rows.

    Args:
        model: Any sequence classifier; used on the device where it is, and put back into the mode
            (training or not) that it was in.
        rows: Tokenised rows.
        batch_size: Rows in a batch.
        precision: As in a training section: auto, fp32, bf16 or fp16.
    """
    import torch

    from hf_kdnas.precision import autocast

    logits = np.zeros((len(rows), model.config.num_labels), np.float32)
    was_training = model.training
    model.train(False)
    with torch.inference_mode(), autocast(model.device, precision):
        for batch in by_length(rows, batch_size):
            inputs = pad([rows[index] for index in batch], model.config.pad_token_id or 0)
            tensors = {name: torch.from_numpy(value).to(model.device) for name, value in inputs.items()}
            logits[batch] = model(**tensors).logits.float().cpu().numpy()
    model.train(was_training)
    return logits


def predict_onnx(
    path: Path,
    rows: Sequence[Row],
    *,
    pad_token_id: int = 0,
    batch_size: int = 1,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
) -> NDArray[np.float32]:
    """An ONNX model's logits, (rows, labels), in the order of the rows.

    Args:
        path: The model file.
        rows: Tokenised rows.
        pad_token_id: Fills up shorter rows.
        batch_size: Rows in a batch. Dynamic INT8 scales activations by the whole batch, padding
            included, so one by one is what its users get.
        threads: Threads inside an operator.
        provider: ONNX Runtime execution provider.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    expected = {each.name for each in session.get_inputs()}
    found: dict[int, Any] = {}
    for batch in by_length(rows, batch_size):
        inputs = _with_types(pad([rows[index] for index in batch], pad_token_id), expected)
        found.update(zip(batch, session.run(["logits"], inputs)[0], strict=True))
    return np.stack([found[index] for index in range(len(rows))]).astype(np.float32)


def _with_types(inputs: Mapping[str, NDArray[np.int64]], expected: set[str]) -> dict[str, NDArray[np.int64]]:
    """The inputs that a graph asks for; token types are 0 where the rows have none."""
    return {name: inputs.get(name, np.zeros_like(inputs["input_ids"])) for name in expected}


def evaluate_model(
    model: PreTrainedModel,
    rows: Sequence[Row],
    task: TaskData,
    *,
    batch_size: int = 64,
    precision: str = "fp32",
) -> dict[str, float]:
    """All metrics of a model on some rows.

    Args:
        model: A sequence classifier with this task's head.
        rows: Rows of the task, such as `task.selection`.
        task: Says which metrics.
        batch_size: Rows in a batch.
        precision: As in a training section: auto, fp32, bf16 or fp16.
    """
    return task.score(predict(model, rows, batch_size=batch_size, precision=precision), rows)
