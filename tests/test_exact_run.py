"""A student of an exact shape from a recipe on: its folder and its card are all that a stranger needs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertModel

from hf_kdnas import cli, load_recipe
from hf_kdnas.exact import as_exact
from hf_kdnas.modeling_exact_bert import ExactBertForSequenceClassification
from hf_kdnas.plan import plan_search
from hf_kdnas.run import read_json

STUDENT = "2L-20H-40F-3A-8D-gelu"
NARROW_HEADS = "2L-32H-40F-2A-8D-gelu"  # a stock config would give them 16 units


@pytest.fixture
def project(tiny_project: Path) -> Path:
    """The tiny project, its teacher of the exact type."""
    as_exact(BertModel.from_pretrained(tiny_project / "base")).save_pretrained(tiny_project / "base")
    return tiny_project


@pytest.mark.parametrize("shape", [STUDENT, NARROW_HEADS])
def test_a_distilled_student_is_exported_and_runs_as_its_card_says(
    project: Path, shape: str, stranger: Callable[..., str]
) -> None:
    assert cli.main(["distill", "--config", str(project / "recipe.yaml"), "--student", shape]) == 0
    results = read_json(project / "run" / "results.json")
    assert results["student"]["architecture"] == shape
    assert results["student"]["export_difference"] < 1e-5
    student = project / "run" / "student"
    text = (student / "README.md").read_text(encoding="utf-8")
    code, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "trust_remote_code=True" in code
    code = code.replace('model="tiny"', f'model="{student}"')
    shown = stranger(code, environment={"HF_MODULES_CACHE": str(project / "modules")})
    assert re.search(r"'label': '(rotten|fresh)'", shown)


def test_beside_its_own_code_a_teacher_is_of_the_packages_type(project: Path) -> None:
    recipe = load_recipe(str(project / "recipe.yaml"), ["teacher.trust_remote_code=true"])
    assert plan_search(recipe).model_class is ExactBertForSequenceClassification


def _set(project: Path, field: str, value: int) -> None:
    path = project / "base" / "config.json"
    path.write_text(json.dumps({**read_json(path), field: value}), encoding="utf-8")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("head_size", 6, r"attention\.output\.dense\.weight\)'; its weights must have the sizes"),
        ("intermediate_size", 48, r"intermediate\.dense\.bias\)'; its weights must have the sizes"),
        ("head_size", 0, "head_size: got 0; must be a positive whole number"),
    ],
)
def test_a_config_of_other_weights_is_refused(
    project: Path, capsys: pytest.CaptureFixture, field: str, value: int, message: str
) -> None:
    """Not even where a new head is made, for which weights of another size may give way."""
    _set(project, field, value)
    assert cli.main(["distill", "--config", str(project / "recipe.yaml"), "--student", STUDENT]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_more_heads_than_the_teacher_has_room_for_are_refused(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    student = "2L-20H-40F-5A-8D-gelu"
    assert cli.main(["distill", "--config", str(project / "recipe.yaml"), "--student", student]) == 2
    assert f"{student} can't be cut from the teacher" in capsys.readouterr().err


def test_a_stock_teacher_has_no_such_student(tiny_project: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["distill", "--config", str(tiny_project / "recipe.yaml"), "--student", STUDENT]) == 2
    error = capsys.readouterr().err
    assert "head_size: got 8; a stock bert config holds hidden_size / num_attention_heads only" in error
    assert "hf_kdnas.exact.as_exact" in error
