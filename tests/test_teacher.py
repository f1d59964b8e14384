"""The teacher as it is loaded for training; what is refused stands in test_bad_input.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hf_kdnas import Architecture, load_recipe
from hf_kdnas.initialisation import Initialiser
from hf_kdnas.plan import plan_search
from hf_kdnas.precision import resolve_attention
from hf_kdnas.progress import Narrator
from hf_kdnas.teacher import prepare_teacher

# A layer of the tiny teacher.
SHAPE = Architecture(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=32)


@pytest.mark.parametrize(("asked", "expected"), [("auto", None), ("sdpa", "sdpa")])
def test_attention_is_computed_as_asked_by_teacher_and_students(
    tiny_project: Path, asked: str, expected: str | None
) -> None:
    recipe = load_recipe(str(tiny_project / "recipe.yaml"), [f"teacher.attn_implementation={asked}"])
    plan = plan_search(recipe)
    teacher = prepare_teacher(recipe.teacher, plan.task, 0, Narrator(False))
    student = Initialiser("random", teacher).student(SHAPE, 0)
    on_this_machine = torch.accelerator.current_accelerator() or torch.device("cpu")
    expected = expected or resolve_attention(on_this_machine, "auto") or "sdpa"
    assert [each.config._attn_implementation for each in (teacher, student)] == [expected, expected]
    student.save_pretrained(tiny_project / "student")
    saved = json.loads((tiny_project / "student" / "config.json").read_text(encoding="utf-8"))
    assert not [key for key in saved if "attn" in key]


def test_automatic_attention() -> None:
    assert resolve_attention(torch.device("cpu"), "auto") == "eager"
    assert resolve_attention(torch.device("cuda"), "auto") is None
    assert resolve_attention(torch.device("cpu"), "sdpa") == "sdpa"
