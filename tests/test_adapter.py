"""A PEFT adapter becomes part of the teacher's weights."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, BertModel

from hf_kdnas import adapter, load_recipe
from hf_kdnas.adapter import merge_adapter
from hf_kdnas.content import weights_hash
from hf_kdnas.errors import InvalidInput, MissingPackage
from hf_kdnas.plan import plan_search
from hf_kdnas.progress import Narrator
from hf_kdnas.teacher import prepare_teacher

LORA = {"r": 4, "lora_alpha": 256, "target_modules": ["query", "value"], "init_lora_weights": False}
NAMES = {"id2label": {0: "rotten", 1: "fresh"}, "label2id": {"rotten": 0, "fresh": 1}}
BATCH = {
    "input_ids": torch.tensor([[2, 8, 9, 3], [2, 10, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}


def save_adapter(model: Any, folder: Path, seed: int = 0, **options: Any) -> torch.Tensor:
    """Write an adapter that changes a model, and return the adapted model's logits."""
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**LORA | options)).eval()
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return adapted(**BATCH).logits


def recipe_of(project: Path, *settings: str) -> Any:
    return load_recipe(str(project / "recipe.yaml"), [f"teacher.adapter={project / 'adapter'}", *settings])


def teacher_of(recipe: Any) -> Any:
    return prepare_teacher(recipe.teacher, plan_search(recipe).task, 0, Narrator(False))


@pytest.fixture
def base(tiny_project: Path, tiny_bert_config) -> BertForSequenceClassification:
    """A classifier in the project's base folder."""
    tiny_bert_config.update(NAMES)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_bert_config)
    model.save_pretrained(tiny_project / "base")
    return model


def test_the_teacher_is_the_adapted_model(tiny_project: Path, tmp_path: Path, base) -> None:
    with torch.no_grad():
        before = base.eval()(**BATCH).logits
    wanted = save_adapter(base, tiny_project / "adapter")
    assert (wanted - before).abs().max() > 1e-3
    teacher = teacher_of(recipe_of(tiny_project, "teacher.fine_tune=null"))
    torch.testing.assert_close(teacher(**BATCH).logits, wanted)
    assert type(teacher) is BertForSequenceClassification
    teacher.save_pretrained(tmp_path / "saved")
    assert sorted(os.listdir(tmp_path / "saved")) == ["config.json", "model.safetensors"]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(loaded(**BATCH).logits, wanted)


def test_the_head_may_come_with_the_adapter(tiny_project: Path, tiny_bert_config) -> None:
    """On a teacher without one, the labels are the data's."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_bert_config)
    model.bert = BertModel.from_pretrained(tiny_project / "base")
    wanted = save_adapter(model, tiny_project / "adapter", task_type="SEQ_CLS")
    teacher = teacher_of(recipe_of(tiny_project, "teacher.fine_tune=null"))
    torch.testing.assert_close(teacher(**BATCH).logits, wanted)
    assert teacher.config.id2label == {0: "rotten", 1: "fresh"}
    with pytest.raises(InvalidInput, match=r"teacher\.adapter.*size mismatch"):
        teacher_of(
            recipe_of(tiny_project, "teacher.fine_tune=null", "data.path=" + str(_of_three(tiny_project)))
        )


def _of_three(project: Path) -> Path:
    """The project's reviews with a third class."""
    lines = (project / "reviews.csv").read_text(encoding="utf-8").splitlines()
    text = "\n".join(
        line.replace("fresh", "so-so") if index % 3 else line for index, line in enumerate(lines)
    )
    (project / "three.csv").write_text(text, encoding="utf-8")
    recipe = (project / "recipe.yaml").read_text(encoding="utf-8")
    (project / "recipe.yaml").write_text(recipe.replace("[rotten, fresh]", "null"), encoding="utf-8")
    return project / "three.csv"


def test_a_fine_tuned_teacher_begins_with_its_adapter(tiny_project: Path, base) -> None:
    """Another adapter in the same folder gives another teacher: the cache goes by content."""
    found = []
    for seed in (0, 0, 1):
        save_adapter(
            AutoModelForSequenceClassification.from_pretrained(tiny_project / "base"),
            tiny_project / "adapter",
            seed,
        )
        teacher = teacher_of(recipe_of(tiny_project, "teacher.fine_tune.epochs=0.1"))
        found.append(weights_hash(teacher))
    assert found[0] == found[1] != found[2]
    kept = [path for path in (tiny_project / "kdnas-cache" / "teachers").iterdir() if path.is_dir()]
    assert len(kept) == 2


def test_an_adapter_that_went_away_is_not_called_one_of_another_teacher(tiny_project: Path, base) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_project / "base")
    with pytest.raises(InvalidInput, match="must be a folder or a Hub id"):
        merge_adapter(model, str(tiny_project / "gone"))


def _spoil_nothing(folder: Path) -> None:
    """It is of another model."""


def _lose_weights(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1" not in name}
    save_file(kept, folder / "adapter_model.safetensors")


def _pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _lose_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_lose_config, r"must have an adapter_config\.json"),
        (_pickle, r"must have an adapter_model\.safetensors: loading adapter_model\.bin may run code"),
        (shutil.rmtree, "must be a folder or a Hub id"),
    ],
)
def test_refused_before_any_work(tiny_project: Path, base, spoil: Any, named: str) -> None:
    save_adapter(base, tiny_project / "adapter")
    spoil(tiny_project / "adapter")
    with pytest.raises(InvalidInput, match=rf"teacher\.adapter.*{named}"):
        plan_search(recipe_of(tiny_project))


def test_peft_is_named_where_it_is_missing(tiny_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r'pip install "hf-kdnas\[peft\]"'):
        plan_search(recipe_of(tiny_project))


@pytest.mark.parametrize(("width", "spoil"), [(16, _spoil_nothing), (32, _lose_weights)])
def test_an_adapter_that_does_not_fit_is_refused(
    tmp_path: Path, tiny_bert_config, make_model, width: int, spoil: Any
) -> None:
    teacher = make_model(tiny_bert_config)
    tiny_bert_config.hidden_size = width
    save_adapter(make_model(tiny_bert_config), tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises(InvalidInput, match=r"teacher\.adapter.*must be an adapter of this teacher"):
        merge_adapter(teacher, str(tmp_path / "adapter"))


def test_an_adapter_that_cannot_be_merged_is_refused(tmp_path: Path, tiny_bert_config, make_model) -> None:
    prompts = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    peft.get_peft_model(make_model(tiny_bert_config), prompts).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InvalidInput, match="of a kind that can be merged"):
        merge_adapter(make_model(tiny_bert_config), str(tmp_path / "adapter"))


LOAD = """
import sys
from hf_kdnas import load_recipe
from hf_kdnas.content import weights_hash
from hf_kdnas.plan import plan_search
from hf_kdnas.progress import Narrator
from hf_kdnas.teacher import prepare_teacher

recipe = load_recipe(sys.argv[1], sys.argv[2:])
print(weights_hash(prepare_teacher(recipe.teacher, plan_search(recipe).task, 0, Narrator(False))))
"""


def _on_the_hub(cache: Path, name: str, folder: Path, commit: str, revision: str) -> None:
    """Put a folder where the Hub's client keeps what it has fetched."""
    repository = cache / f"models--org--{name}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit, encoding="utf-8")


def test_teacher_and_adapter_from_the_hub_at_a_revision(tiny_project: Path, tmp_path: Path, base) -> None:
    cache, untouched = tmp_path / "hub", copy.deepcopy(base)
    save_adapter(base, tiny_project / "adapter")
    wanted = weights_hash(teacher_of(recipe_of(tiny_project, "teacher.fine_tune=null")))
    _on_the_hub(cache, "base", tiny_project / "base", "a" * 40, "v1")
    _on_the_hub(cache, "adapter", tiny_project / "adapter", "c" * 40, "v2")
    shutil.rmtree(tiny_project / "adapter")
    save_adapter(untouched, tiny_project / "adapter", seed=1)
    _on_the_hub(cache, "adapter", tiny_project / "adapter", "d" * 40, "main")
    with torch.no_grad():
        base.classifier.weight.zero_()
    base.save_pretrained(tiny_project / "base")
    _on_the_hub(cache, "base", tiny_project / "base", "b" * 40, "main")
    settings = ["model=org/base", "revision=v1", "adapter=org/adapter", "adapter_revision=v2"]
    settings += ["fine_tune=null"]
    recipe = str(tiny_project / "recipe.yaml")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, recipe, *(f"teacher.{each}" for each in settings)],
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == wanted, done.stderr
