"""The card of a student that was pulled from a SuperLM, and its publication."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hf_kdnas.errors import InvalidInput
from hf_kdnas.hub.extracted import EXTRACTED, extracted_card, load_extracted, render_extracted_card
from hf_kdnas.hub.merge import SECTIONS
from hf_kdnas.hub.publish import publish_run

sys.path.insert(0, str(Path(__file__).parent))
from loopback_hub import Hub


@pytest.fixture
def found(results: dict[str, Any]) -> dict[str, Any]:
    """As `kdnas superlm extract` writes them; the numbers are invented."""
    member = {"space": "small", "architecture": "4L-256H-1024F-8A-gelu", "loss": 0.5}
    costs = {"parameters": 10_960_000, "flops": 436_207_616}
    return {
        **member,
        **costs,
        "workflow": "superlm",
        "name": "made-up",
        "seed": 42,
        "model_type": "bert",
        "head": "",
        "members": 120,
        "rank": 12,
        "front": [{**member, **costs}],
        "objectives": {"relations": {"loss": "mse"}},
        "training": {
            "steps": 100,
            "batch_size": 32,
            "gradient_accumulation_steps": 2,
            "random_subnets": 2,
        },
        "task": {"dataset": "Salesforce/wikitext (wikitext-2-raw-v1)"},
        "teacher": results["teacher"],
        "latency_target": results["latency_target"],
        "environment": results["environment"],
        "recipe": "data: {path: Salesforce/wikitext, name: wikitext-2-raw-v1}\n",
    }


def test_its_words_and_metadata(found: dict[str, Any]) -> None:
    text = extracted_card(found).replace("\N{NO-BREAK SPACE}", " ")
    card = ModelCard(text)
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.base_model_relation == "finetune"
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "feature-extraction")
    assert card.data.datasets == "Salesforce/wikitext"
    assert {"kdnas", "distillation", "neural-architecture-search"} <= set(card.data.tags)
    assert "120 students" in text
    assert "the 12th of them" in text
    assert "100 steps of 64 windows" in text
    assert "2201.12507" in text
    assert "2012.15828" in text
    assert "latency was not measured" in text
    assert "More information needed" not in text
    assert "\n\n\n" not in text
    assert set(re.findall(r"^## (.*)$", text, re.MULTILINE)) <= set(SECTIONS)


def test_a_measured_latency_is_told(found: dict[str, Any]) -> None:
    text = extracted_card(found | {"latency_ms": 3.21, "speedup": 4.5})
    assert "3.21" in text
    assert "not measured" not in text


@pytest.mark.parametrize("head", ["", "MaskedLM"])
@pytest.mark.parametrize("model_type", ["bert", "exact-bert"])
def test_the_code_in_it_is_python(found: dict[str, Any], head: str, model_type: str) -> None:
    text = extracted_card(found | {"head": head, "model_type": model_type})
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "card", "exec")
    assert ("trust_remote_code=True" in code) == (model_type == "exact-bert")
    assert ("fill-mask" in code) == bool(head)
    assert ("`optimum-cli` exports stock models alone" in text) == (model_type == "exact-bert")


@pytest.mark.parametrize("content", ["{", "[]", '{"architecture": "x"}'])
def test_too_little_for_a_card_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / EXTRACTED).write_text(content)
    with pytest.raises(InvalidInput, match="Repeat kdnas superlm extract"):
        load_extracted(tmp_path)


def test_it_is_published_with_card_and_record(
    online: Hub, run_dir: Path, found: dict[str, Any], tmp_path: Path
) -> None:
    folder = run_dir / "student"  # weights and tokenizer, as an extracted student has them
    for path in (folder / "README.md", *(folder / "onnx").iterdir()):
        path.unlink()
    found["teacher"] = {**found["teacher"], "model": str(tmp_path / "teacher")}
    (folder / EXTRACTED).write_text(json.dumps(found))
    render_extracted_card(folder)
    publish_run(folder, "someone/pulled")
    files = online.repos["someone/pulled"].files()
    assert {"README.md", "config.json", "kdnas.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert EXTRACTED not in files
    assert json.loads(files["kdnas.json"])["teacher"]["model"] == "<local>/teacher"
    assert 'name = "someone/pulled"' in files["README.md"].decode()
