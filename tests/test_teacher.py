"""The teacher as it is loaded for training; what is refused stands in test_bad_input.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
)

from hf_kdnas import Architecture, load_recipe
from hf_kdnas.errors import InvalidInput
from hf_kdnas.initialisation import Initialiser
from hf_kdnas.plan import plan_search
from hf_kdnas.precision import resolve_attention
from hf_kdnas.progress import Narrator
from hf_kdnas.resources import cache_dir
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


def test_a_tokenizer_makes_no_token_types_for_a_model_without_them(
    tiny_project: Path, tmp_path: Path
) -> None:
    """Many a DistilBERT lies beside a tokenizer that calls itself BERT's."""
    config = DistilBertConfig(vocab_size=120, dim=32, n_layers=3, n_heads=4, hidden_dim=64)
    DistilBertModel(config).save_pretrained(tiny_project / "base")
    tokenizer = plan_search(load_recipe(str(tiny_project / "recipe.yaml"), [])).tokenizer
    tokenizer.save_pretrained(tmp_path / "student")
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "student")):
        assert set(each("a great film", "so dull")) == {"input_ids", "attention_mask"}


@pytest.fixture
def narrow_electra(tiny_project: Path) -> Path:
    """The tiny project with a teacher whose embeddings are half as wide as its residual stream."""
    config = ElectraConfig(
        vocab_size=120,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    ElectraModel(config).save_pretrained(tiny_project / "base")
    return tiny_project / "recipe.yaml"


@pytest.mark.parametrize("initialisation", ["random", "slice", "project"])
def test_shapes_that_the_teachers_config_cannot_hold_are_left_out(
    narrow_electra: Path, initialisation: str
) -> None:
    settings = [f"distillation.initialisation={initialisation}", "space.hidden_size=[8,16,24]"]
    plan = plan_search(load_recipe(str(narrow_electra), settings))
    assert {member.hidden_size for member in plan.space} == {8, 24}


def test_a_baseline_that_the_teachers_config_cannot_hold_is_refused(narrow_electra: Path) -> None:
    recipe = load_recipe(str(narrow_electra), ["search.baselines=[2L-16H-64F-4A-gelu]"])
    with pytest.raises(InvalidInput, match=r"search\.baselines.*hidden_size: got 16"):
        plan_search(recipe)


def test_automatic_attention() -> None:
    assert resolve_attention(torch.device("cpu"), "auto") == "eager"
    assert resolve_attention(torch.device("cuda"), "auto") is None
    assert resolve_attention(torch.device("cpu"), "sdpa") == "sdpa"


def test_fine_tuning_replaces_the_head_of_another_task(tiny_project: Path, tiny_bert_config) -> None:
    tiny_bert_config.num_labels = 5
    AutoModelForSequenceClassification.from_config(tiny_bert_config).save_pretrained(tiny_project / "base")
    recipe = load_recipe(str(tiny_project / "recipe.yaml"), ["teacher.fine_tune.epochs=0.1"])
    teacher = prepare_teacher(recipe.teacher, plan_search(recipe).task, 0, Narrator(False))
    assert teacher.classifier.out_features == 2
    assert teacher.config.id2label == {0: "rotten", 1: "fresh"}


def test_the_data_name_the_classes_of_a_head_without_names(tiny_project: Path, tiny_bert_config) -> None:
    AutoModelForSequenceClassification.from_config(tiny_bert_config).save_pretrained(tiny_project / "base")
    recipe = load_recipe(str(tiny_project / "recipe.yaml"), ["teacher.fine_tune=null"])
    plan = plan_search(recipe)
    for config in (plan.config, prepare_teacher(recipe.teacher, plan.task, 0, Narrator(False)).config):
        assert config.id2label == {0: "rotten", 1: "fresh"}
        assert config.label2id == {"rotten": 0, "fresh": 1}


def test_a_cached_teacher_has_the_labels_of_this_recipe(tiny_project: Path) -> None:
    reviews = tiny_project / "reviews.csv"
    text = reviews.read_text(encoding="utf-8").replace("rotten", "0").replace("fresh", "1")
    reviews.write_text(text, encoding="utf-8")
    for labels, named in (("null", {0: "0", 1: "1"}), ("[bad, good]", {0: "bad", 1: "good"})):
        recipe = load_recipe(
            str(tiny_project / "recipe.yaml"), [f"data.labels={labels}", "teacher.fine_tune.epochs=0.1"]
        )
        teacher = prepare_teacher(recipe.teacher, plan_search(recipe).task, 0, Narrator(False))
        assert teacher.config.id2label == named
    assert len([path for path in (cache_dir() / "teachers").iterdir() if path.is_dir()]) == 1
