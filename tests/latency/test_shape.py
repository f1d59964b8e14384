from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification

from hf_kdnas.architecture import Architecture
from hf_kdnas.exact import exact_config
from hf_kdnas.latency import shape as shape_module
from hf_kdnas.latency.export import get_exporter
from hf_kdnas.latency.shape import export_shape, measure_shape
from hf_kdnas.latency.store import LatencyStore, latency_key
from hf_kdnas.latency.target import LatencyTarget
from hf_kdnas.modeling_exact_bert import ExactBertForSequenceClassification

STUDENT = Architecture(1, 16, 2, 32)


class CountingExporter:
    """The exporter, and how often it was asked."""

    def __init__(self) -> None:
        self._exporter = get_exporter()
        self.name = self._exporter.name
        self.exported: list[str] = []

    def export(self, model, path: Path) -> None:
        self.exported.append(Architecture.from_config(model.config).key)
        self._exporter.export(model, path)


@pytest.fixture
def exporter() -> CountingExporter:
    return CountingExporter()


def test_a_graph_that_is_there_is_kept(tiny_bert_config, tmp_path: Path, exporter: CountingExporter) -> None:
    for _ in range(2):
        export_shape(BertForSequenceClassification, tiny_bert_config, exporter, tmp_path / "a" / "model.onnx")
    assert len(exporter.exported) == 1
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["model.onnx"]


def test_drawing_weights_leaves_the_random_numbers_alone(tiny_bert_config, tmp_path: Path) -> None:
    class Drawing:
        name = "drawing"

        def export(self, model, path: Path) -> None:
            path.write_bytes(model.classifier.weight.detach().numpy().tobytes())

    torch.manual_seed(7)
    expected = torch.rand(1)
    for name in ("a", "b"):
        torch.manual_seed(7)
        export_shape(BertForSequenceClassification, tiny_bert_config, Drawing(), tmp_path / name)
        assert torch.rand(1) == expected
        torch.rand(3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_export_that_fails_leaves_nothing(tiny_bert_config, tmp_path: Path) -> None:
    class Failing:
        name = "failing"

        def export(self, model, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        export_shape(BertForSequenceClassification, tiny_bert_config, Failing(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_shape_is_measured_once(
    tiny_bert_config,
    tmp_path: Path,
    exporter: CountingExporter,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = tmp_path / "reference" / "model.onnx"
    export_shape(BertForSequenceClassification, tiny_bert_config, exporter, reference)
    target = LatencyTarget(sequence_length=8, rounds=5, warmup=1, precision=precision)
    measured = []
    real = shape_module.measure

    def recording(path, target, *, reference):
        measured.append((path.name, reference.name))
        return real(path, target, reference=reference)

    monkeypatch.setattr(shape_module, "measure", recording)

    def report():
        return measure_shape(
            BertForSequenceClassification,
            STUDENT.apply_to(tiny_bert_config),
            target,
            reference=reference,
            reference_config=tiny_bert_config,
            exporter=exporter,
            store=LatencyStore(tmp_path / "store"),
        )

    first = report()
    assert report() == first
    assert exporter.exported == ["3L-32H-64F-4A-gelu", STUDENT.key]
    name = "model.onnx" if precision == "fp32" else "model_int8.onnx"
    assert measured == [(name, name)]  # the teacher in the same precision


def test_shapes_that_no_stock_config_holds_are_measured(tiny_bert_config, tmp_path: Path) -> None:
    exporter = get_exporter()
    reference = tmp_path / "reference" / "model.onnx"
    export_shape(BertForSequenceClassification, tiny_bert_config, exporter, reference)
    shape = Architecture(1, 20, 3, 32, head_size=24)
    config = shape.apply_to(exact_config(tiny_bert_config))
    store = LatencyStore(tmp_path / "store")
    report = measure_shape(
        ExactBertForSequenceClassification,
        config,
        LatencyTarget(sequence_length=8, rounds=5, warmup=1),
        reference=reference,
        reference_config=tiny_bert_config,
        exporter=exporter,
        store=store,
    )
    assert report.median_ms > 0
    assert len(list((tmp_path / "store").iterdir())) == 1


def test_the_code_beside_a_model_is_no_part_of_its_graph(tiny_bert_config, tmp_path: Path) -> None:
    config = exact_config(tiny_bert_config)
    other = Architecture(3, 32, 4, 64, head_size=12).apply_to(config)
    key, wider = (
        latency_key(each, LatencyTarget(), tiny_bert_config, "Model", "optimum") for each in (config, other)
    )
    config.save_pretrained(tmp_path)
    assert config.auto_map
    assert latency_key(config, LatencyTarget(), tiny_bert_config, "Model", "optimum") == key != wider
