"""What students are made of: the teacher's signals, as a recipe asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from hf_kdnas import load_recipe
from hf_kdnas.distill.signals import TeacherSignals
from hf_kdnas.initialisation import Initialiser
from hf_kdnas.materials import prepare_signals
from hf_kdnas.plan import plan_search
from hf_kdnas.progress import Narrator


@pytest.fixture
def signals_of(tiny_project: Path, tiny_bert_config, make_model):
    """The signals of one teacher, as a recipe with these settings makes them."""
    initialiser = Initialiser("random", make_model(tiny_bert_config))

    def prepare(*settings: str) -> TeacherSignals:
        plan = plan_search(load_recipe(str(tiny_project / "recipe.yaml"), list(settings)))
        signals = prepare_signals(plan, initialiser, PartialState(), Narrator(False))
        assert signals is not None
        return signals

    return prepare


def test_the_teacher_computes_in_the_dtype_asked_for(signals_of) -> None:
    """Where none is, as its students are trained (in fp32 here)."""
    found = {dtype: signals_of(f"teacher.dtype={dtype}") for dtype in ("auto", "float32", "bfloat16")}
    assert found["auto"].folder == found["float32"].folder
    assert found["bfloat16"].key != found["float32"].key
    logits = {dtype: signals.collate(range(32), 32)["logits"] for dtype, signals in found.items()}
    assert not torch.equal(logits["bfloat16"], logits["float32"])
    torch.testing.assert_close(logits["bfloat16"], logits["float32"], rtol=0.05, atol=0.05)


def test_signals_may_be_kept_in_fp32(signals_of) -> None:
    found = {
        precision: signals_of(f"distillation.signals.precision={precision}") for precision in ("fp16", "fp32")
    }
    assert found["fp16"].folder != found["fp32"].folder
    assert found["fp16"].folder == signals_of().folder
    states = {precision: signals.collate([0], 32)["hidden.3"] for precision, signals in found.items()}
    assert {precision: each.dtype for precision, each in states.items()} == {
        "fp16": torch.float16,
        "fp32": torch.float32,
    }
    assert torch.equal(states["fp16"], states["fp32"].half())


def test_damaged_signals_in_the_cache_are_built_again(signals_of) -> None:
    signals = signals_of()
    file = signals.folder / "logits.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-64] + bytes(64))
    assert signals_of().folder == signals.folder
    assert file.read_bytes() == content
