"""A searched student is a stock model: what loads it knows nothing of hf_kdnas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_kdnas import cli
from hf_kdnas.latency.export.optimum import OptimumExporter

TEXTS = ["the film is great", "the plot was dull and the acting weak but not so long", "fine"]

STRANGER = """
import json
from importlib.util import find_spec

folder, texts = sys.argv[1], json.loads(sys.argv[2])

import numpy as np
import onnxruntime
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(texts, padding=True, return_tensors="pt")
found = {"stock": AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits.tolist()}
session = onnxruntime.InferenceSession(folder + "/onnx/model.onnx")
given = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
found["onnxruntime"] = session.run(["logits"], given)[0].tolist()
if find_spec("optimum") is not None:
    from optimum.onnxruntime import ORTModelForSequenceClassification

    found["optimum"] = ORTModelForSequenceClassification.from_pretrained(folder)(**inputs).logits.tolist()
    subfolder = ORTModelForSequenceClassification.from_pretrained(folder, subfolder="onnx")
    found["optimum, subfolder"] = subfolder(**inputs).logits.tolist()
found["labels"] = [each["label"] for each in pipeline("text-classification", model=folder)(texts)]
print(json.dumps(found))
"""


@pytest.fixture
def student(tiny_project: Path) -> Path:
    """Folder of a searched student."""
    assert cli.main(["search", "--config", str(tiny_project / "recipe.yaml")]) == 0
    return tiny_project / "run" / "student"


def test_it_gives_the_same_logits_everywhere_without_hf_kdnas(
    student: Path, tmp_path: Path, stranger: Callable[..., str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForSequenceClassification.from_pretrained(student)
    with torch.inference_mode():
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()

    shown = stranger(STRANGER, str(student), json.dumps(TEXTS), cwd=tmp_path)
    found = json.loads(shown.splitlines()[-1])
    labels = found.pop("labels")
    # There is no Optimum for Transformers 5.
    optimum = {"optimum", "optimum, subfolder"} if OptimumExporter.available() else set()
    assert found.keys() == {"stock", "onnxruntime"} | optimum
    for way, given in found.items():
        assert np.abs(np.array(given) - logits).max() < 1e-5, way
    assert labels == [model.config.id2label[index] for index in logits.argmax(-1)]
    assert set(labels) <= {"rotten", "fresh"}


def test_its_config_is_stock_and_names_no_path(student: Path, tiny_project: Path) -> None:
    text = (student / "config.json").read_text(encoding="utf-8")
    assert json.loads(text)["architectures"] == ["BertForSequenceClassification"]
    assert str(tiny_project) not in text
    assert not list(student.glob("*.bin"))
    assert not list(student.glob("*.py"))


def test_it_takes_texts_as_long_as_its_teacher_does(tiny_run: Path) -> None:
    """Not as short as those that it was distilled on."""
    folders = (tiny_run / "student", tiny_run.parent / "base")
    assert [AutoTokenizer.from_pretrained(folder).model_max_length for folder in folders] == [64, 64]
