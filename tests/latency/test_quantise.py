from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_kdnas.errors import MissingPackage
from hf_kdnas.latency.quantise import quantise
from hf_kdnas.latency.target import LatencyTarget


def logits(path: Path) -> np.ndarray:
    ids = np.random.default_rng(0).integers(5, 120, (4, 20))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return LatencyTarget().session(path).run(["logits"], feed)[0]


def test_the_int8_model_is_smaller_and_nearly_the_same(onnx_model: Path, tmp_path: Path) -> None:
    quantised = quantise(onnx_model, tmp_path / "onnx" / "model_int8.onnx")
    assert quantised == tmp_path / "onnx" / "model_int8.onnx"
    assert [file.name for file in quantised.parent.iterdir()] == ["model_int8.onnx"]
    difference = np.abs(logits(quantised) - logits(onnx_model)).max()
    assert 0 < difference < 0.05


def test_matrix_products_and_embeddings_are_int8(onnx_model: Path, tmp_path: Path) -> None:
    import onnx

    graph = onnx.load(quantise(onnx_model, tmp_path / "model_int8.onnx")).graph
    integer = sum(node.op_type == "MatMulInteger" for node in graph.node)
    # Query, key, value, attention output and two of the feed-forward network; pooler and classifier.
    assert integer == 3 * 6 + 2
    widest = max(graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    assert widest.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


def test_what_was_there_survives_a_failure(
    onnx_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: Any, target: Path, **options: Any) -> None:
        target.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", full)
    target = tmp_path / "onnx" / "model_int8.onnx"
    target.parent.mkdir()
    target.write_bytes(b"before")
    with pytest.raises(OSError, match="no space"):
        quantise(onnx_model, target)
    assert target.read_bytes() == b"before"
    assert list(target.parent.iterdir()) == [target]


def test_without_onnx_the_error_gives_the_pip_line(
    onnx_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackage, match="pip install"):
        quantise(onnx_model, tmp_path / "model_int8.onnx")
