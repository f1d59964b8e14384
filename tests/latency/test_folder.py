from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import BertForMaskedLM, BertForQuestionAnswering, BertForTokenClassification, BertModel

from hf_kdnas.errors import InvalidInput
from hf_kdnas.latency import folder
from hf_kdnas.latency.folder import onnx_file


@pytest.fixture
def student(onnx_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(onnx_model.parent.parent, tmp_path / "student"))


def test_the_onnx_file_of_a_folder_is_taken_as_it_is(student: Path, tmp_path: Path) -> None:
    assert onnx_file(str(student), tmp_path / "scratch", precision="fp32") == student / "onnx" / "model.onnx"
    shutil.move(student / "onnx" / "model.onnx", student / "model.onnx")
    assert onnx_file(str(student), tmp_path / "scratch", precision="fp32") == student / "model.onnx"
    file = student / "model.onnx"
    assert onnx_file(str(file), tmp_path / "scratch", precision="fp32") == file


def test_a_missing_int8_file_is_made_of_the_fp32_file(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (student / "model.safetensors").unlink()
    before = sorted(student.rglob("*"))
    made = onnx_file(str(student), tmp_path / "scratch", precision="int8")
    assert made == tmp_path / "scratch" / "model_int8.onnx"
    assert made.is_file()
    assert sorted(student.rglob("*")) == before
    shutil.copy(made, student / "onnx")
    monkeypatch.setattr(folder, "quantise", None)
    assert onnx_file(str(student), tmp_path, precision="int8") == student / "onnx" / "model_int8.onnx"


def test_a_folder_without_onnx_is_exported_elsewhere(student: Path, tmp_path: Path) -> None:
    shutil.rmtree(student / "onnx")
    made = onnx_file(str(student), tmp_path / "scratch", precision="fp32")
    assert made.is_relative_to(tmp_path / "scratch")
    assert made.is_file()
    assert not (student / "onnx").exists()


def test_any_head_is_exported_as_what_it_is(tiny_bert_config, tmp_path: Path) -> None:
    import onnxruntime

    outputs = {
        BertForTokenClassification: ["logits"],
        BertForQuestionAnswering: ["start_logits", "end_logits"],
        BertForMaskedLM: ["logits"],
        BertModel: ["last_hidden_state"],
    }
    for head, names in outputs.items():
        head(tiny_bert_config).save_pretrained(tmp_path / head.__name__)
        made = onnx_file(str(tmp_path / head.__name__), tmp_path / head.__name__, precision="fp32")
        exported = [each.name for each in onnxruntime.InferenceSession(str(made)).get_outputs()]
        # transformers.exporters keeps the pooler's output too, Optimum leaves it out.
        assert exported[: len(names)] == names


def test_what_is_no_model_is_refused_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="the folder has no config"):
        onnx_file(str(tmp_path / "empty"), tmp_path, precision="fp32")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InvalidInput, match="a whole safetensors file"):
        onnx_file(str(tmp_path), tmp_path, precision="fp32")
    with pytest.raises(InvalidInput, match="must be an ONNX file, a model's folder or a Hub id"):
        onnx_file("no/such/model", tmp_path, precision="fp32")


def test_a_broken_onnx_file_is_refused_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"half a file")
    with pytest.raises(InvalidInput, match="must be a whole ONNX model"):
        onnx_file(str(tmp_path), tmp_path, precision="fp32")
