from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from hf_kdnas.errors import InvalidInput, MissingPackage
from hf_kdnas.families import get_family
from hf_kdnas.latency import export as export_module
from hf_kdnas.latency.export import EXPORTERS, OptimumExporter, export_model, get_exporter
from hf_kdnas.latency.shape import export_shape
from hf_kdnas.latency.target import LatencyTarget

AVAILABLE = [name for name, exporter in EXPORTERS.items() if exporter.available()]


@pytest.fixture
def model(tiny_config, make_model):
    return make_model(tiny_config)


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_onnx_model_gives_pytorchs_logits_at_any_batch_and_length(
    model, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    report = export_model(model, tmp_path, exporter=get_exporter(name))
    assert report.path == tmp_path / "onnx" / "model.onnx"
    assert [file.name for file in report.path.parent.iterdir()] == ["model.onnx"]
    assert report.max_abs_difference < 1e-5
    assert capsys.readouterr().out == ""
    session = LatencyTarget().session(report.path)
    asked = {each.name for each in session.get_inputs()}
    takes_types = "token_type_ids" in get_family(model.config).inputs
    assert ("token_type_ids" in asked) == (takes_types and model.config.type_vocab_size > 1)
    for batch, length in ((1, 1), (3, 40), (5, 7)):
        ids = torch.randint(5, 120, (batch, length))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 + 1 :] = 0
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.ones_like(ids)}
        inputs = {each: value for each, value in inputs.items() if each in asked}
        with torch.inference_mode():
            wanted = model(**inputs).logits.numpy()
        found = session.run(["logits"], {each: value.numpy() for each, value in inputs.items()})[0]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


class _Large(OptimumExporter):
    """Puts weights beside the graph, as exporters do with more than 2 GB of them."""

    def export(self, model, path: Path) -> None:
        super().export(model, path)
        graph = onnx.load(path)
        onnx.save(graph, path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=0)


@pytest.mark.skipif("optimum" not in AVAILABLE, reason="Optimum is not installed")
def test_weights_beside_the_graph_come_along(tiny_bert_config, make_model, tmp_path: Path) -> None:
    model = make_model(tiny_bert_config)
    path = export_model(model, tmp_path, exporter=_Large()).path
    shape = tmp_path / "shape.onnx"
    export_shape(type(model), tiny_bert_config, _Large(), shape)
    for graph in (path, shape):
        assert graph.with_name(f"{graph.name}_data").is_file()
        LatencyTarget().session(graph)


def test_the_attention_of_the_training_does_not_matter(tiny_bert_config, make_model, tmp_path: Path) -> None:
    files = []
    for attention in ("sdpa", "eager"):
        tiny_bert_config._attn_implementation = attention
        model = make_model(tiny_bert_config)
        assert model.config._attn_implementation == attention
        files.append(export_model(model, tmp_path / attention, exporter=get_exporter()).path)
    operators = [[node.op_type for node in onnx.load(file).graph.node] for file in files]
    assert operators[0] == operators[1]


class WrongExporter:
    """Exports another function."""

    name = "wrong"

    def __init__(self, change: float) -> None:
        self._change = change

    def export(self, model, path: Path) -> None:
        bias = model.classifier.bias.detach().clone()
        with torch.no_grad():
            model.classifier.bias += self._change
            get_exporter().export(model, path)
            model.classifier.bias.copy_(bias)


@pytest.mark.parametrize(("change", "number"), [(0.5, "0.5"), (float("nan"), "nan")])
def test_another_function_is_refused_with_the_number(
    tiny_bert_config, make_model, tmp_path: Path, change: float, number: str
) -> None:
    with pytest.raises(RuntimeError, match=f"differ by {number}"):
        export_model(make_model(tiny_bert_config), tmp_path, exporter=WrongExporter(change))
    assert list((tmp_path / "onnx").iterdir()) == []


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(InvalidInput, match="auto, optimum, transformers"):
        get_exporter("onnxscript")


def test_without_a_back_end_the_error_gives_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for exporter in EXPORTERS.values():
        monkeypatch.setattr(exporter, "available", staticmethod(lambda: False))
    fitting = "optimum" if version("transformers").startswith("4.") else "onnx"
    with pytest.raises(MissingPackage, match=rf'pip install "hf-kdnas\[{fitting},onnxruntime\]"'):
        get_exporter()
    with pytest.raises(MissingPackage, match=r"transformers>=5\.21"):
        get_exporter("transformers")


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module.OptimumExporter, "available", staticmethod(lambda: False))
    monkeypatch.setattr(export_module.TransformersExporter, "available", staticmethod(lambda: True))
    assert get_exporter().name == "transformers"


@pytest.mark.parametrize("file", ["model.onnx", "model_int8.onnx"])
def test_optimum_loads_the_folder_as_it_is(onnx_model: Path, tmp_path: Path, file: str) -> None:
    onnxruntime = pytest.importorskip("optimum.onnxruntime")
    from transformers import AutoModelForSequenceClassification

    from hf_kdnas.latency.quantise import quantise

    folder = Path(shutil.copytree(onnx_model.parent.parent, tmp_path / "student"))
    quantise(folder / "onnx" / "model.onnx", folder / "onnx" / "model_int8.onnx")
    named = {} if file == "model.onnx" else {"file_name": file}
    loaded = onnxruntime.ORTModelForSequenceClassification.from_pretrained(folder, subfolder="onnx", **named)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.randint(5, 120, (2, 9))
    with torch.inference_mode():
        wanted = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    found = loaded(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(found, wanted, atol=1e-5 if file == "model.onnx" else 0.05, rtol=0)
    assert loaded.config.num_labels == 3
