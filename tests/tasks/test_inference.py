"""Rows through models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_kdnas.recipe import DataSection
from hf_kdnas.tasks import (
    TaskData,
    by_length,
    evaluate_model,
    load_task,
    model_inputs,
    predict,
    predict_onnx,
)


def test_predictions_do_not_depend_on_batches(
    tmp_path: Path, tiny_tokenizer: Any, tiny_bert_config: Any, make_model: Any, write: Any
) -> None:
    data = DataSection(path=write(tmp_path / "rows.jsonl", [0, 1]), text=["text", "other"])
    rows = load_task(data, tiny_tokenizer).train
    model = make_model(tiny_bert_config).train()
    batched = predict(model, rows, batch_size=7)
    assert model.training
    model.eval()
    with torch.no_grad():
        for row, logits in zip(rows[:8], batched, strict=False):
            alone = model(
                input_ids=torch.tensor([row["input_ids"]]),
                token_type_ids=torch.tensor([row["token_type_ids"]]),
            )
            np.testing.assert_allclose(logits, alone.logits[0].numpy(), atol=1e-5)


def test_padding_is_the_models_own(
    tmp_path: Path, tiny_tokenizer: Any, tiny_roberta_config: Any, make_model: Any, write: Any
) -> None:
    """RoBERTa counts positions from the padding token: with another one, padded rows would move."""
    rows = load_task(DataSection(path=write(tmp_path / "rows.jsonl", [0, 1])), tiny_tokenizer).train
    model = make_model(tiny_roberta_config)
    np.testing.assert_allclose(
        predict(model, rows, batch_size=8), predict(model, rows, batch_size=1), atol=1e-5
    )


def test_precision(tmp_path: Path, task: TaskData, tiny_bert_config: Any, make_model: Any) -> None:
    model = make_model(tiny_bert_config)
    exact, rounded = (np.stack(predict(model, task.train, precision=each)) for each in ("fp32", "bf16"))
    assert 0 < np.abs(exact - rounded).max() < 0.05


def test_a_model_that_diverged_has_no_score(task: TaskData, tiny_bert_config: Any, make_model: Any) -> None:
    """The class of the greatest logit would be the first one, and that one's share a score."""
    model = make_model(tiny_bert_config)
    torch.nn.init.constant_(model.classifier.weight, torch.nan)
    assert all(np.isnan(value) for value in evaluate_model(model, task.selection, task).values())


def test_batches_are_of_similar_length() -> None:
    rows = [{"input_ids": [1] * size} for size in (3, 9, 1, 8, 2)]
    assert by_length(rows, 2) == [[1, 3], [0, 4], [2]]


def test_padding() -> None:
    padded = model_inputs([{"input_ids": [5, 6]}, {"input_ids": [7]}], 9)
    assert padded["input_ids"].tolist() == [[5, 6], [7, 9]]
    assert padded["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert "token_type_ids" not in padded


def test_an_onnx_models_logits_are_in_the_order_of_the_rows(tmp_path: Path) -> None:
    """The graph adds up the token ids that the mask keeps; it also asks for token types."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    names = ["input_ids", "attention_mask", "token_type_ids"]
    shape = ["batch", "length"]
    graph = helper.make_graph(
        [
            helper.make_node("Mul", names[:2], ["kept"]),
            helper.make_node("Add", ["kept", names[2]], ["sum"]),
            helper.make_node("Cast", ["sum"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["floats", "axes"], ["logits"], keepdims=1),
        ],
        "sums",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    rows = [{"input_ids": ids} for ids in ([1], [2, 3, 4], [5, 6], [7, 8, 9, 10])]
    for batch_size in (1, 3):
        found = predict_onnx(tmp_path / "model.onnx", rows, pad_token_id=99, batch_size=batch_size)
        assert np.stack(found).tolist() == [[1], [9], [11], [34]]
