"""Sentence embeddings: pooling, scores without labels, and the folder that sentence-transformers reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, BertModel

from hf_kdnas.errors import InvalidInput
from hf_kdnas.recipe import DataSection, TeacherSection
from hf_kdnas.run import write_json
from hf_kdnas.tasks import TaskData, evaluate_model, load_task, predict
from hf_kdnas.tasks.sentences import similarities

TEXTS = ["the film was very good", "a dull story", "great acting and a warm ending", "not so funny", "sad"]


@pytest.fixture
def task(tmp_path: Path, tiny_tokenizer: Any) -> TaskData:
    lines = [f"{text} {'very ' * (index % 7)}film" for index in range(12) for text in TEXTS]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    data = DataSection(path=str(tmp_path / "lines.txt"), task="sentence-similarity", selection_fraction=0.4)
    return load_task(data, tiny_tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selection_fraction": 0.02}, r"data\.selection_fraction: got '[12] texts'; .*needs 3 at least"),
        ({"reporting_fraction": 0.02}, r"data\.reporting_fraction: got '[12] texts'; .*or a larger part"),
        ({"reporting_split": "test"}, r"data\.reporting_split: got '2 texts'; .*Give more texts there"),
    ],
)
def test_splits_without_similarities_to_compare_are_refused(
    tmp_path: Path, tiny_tokenizer: Any, settings: dict[str, Any], message: str
) -> None:
    lines = [f"{text} {'very ' * (index % 7)}film" for index in range(12) for text in TEXTS]
    (tmp_path / "text.train.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "text.test.txt").write_text("\n".join(lines[:2]), encoding="utf-8")
    data = DataSection(path=str(tmp_path / "text"), task="sentence-similarity", **settings)
    with pytest.raises(InvalidInput, match=message):
        load_task(data, tiny_tokenizer)


def model_of(config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return AutoModel.from_config(config).eval()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_student_is_scored_by_the_order_of_its_similarities(
    task: TaskData, tiny_bert_config: Any, pooling: str
) -> None:
    task = dataclasses.replace(task, pooling=pooling)
    teacher, student = model_of(tiny_bert_config, 0), model_of(tiny_bert_config, 1)

    def embedded(model: Any) -> Any:
        rows = []
        for row in task.selection:
            with torch.no_grad():
                states = model(input_ids=torch.tensor([row["input_ids"]])).last_hidden_state[0].double()
            rows.append(states.mean(0) if pooling == "mean" else states[0])
        rows = torch.nn.functional.normalize(torch.stack(rows), dim=1)
        return [float(a @ b) for index, a in enumerate(rows) for b in rows[index + 1 :]]

    task = task.with_references(lambda rows: predict(teacher, rows, reduce=task.reduced))
    assert task.metric == "spearman"
    assert evaluate_model(teacher, task.selection, task)["spearman"] == pytest.approx(1.0)
    wanted = spearmanr(embedded(student), embedded(teacher)).statistic
    assert evaluate_model(student, task.selection, task)["spearman"] == pytest.approx(wanted, abs=1e-3)
    assert abs(wanted) < 0.95


def test_similarities_are_cosines_of_pairs() -> None:
    rows = [np.array([1.0, 0.0]), np.array([2.0, 2.0]), np.array([0.0, -3.0])]
    assert similarities(rows) == pytest.approx([0.5**0.5, 0.0, -(0.5**0.5)])


def modules(folder: Path, pooling: dict[str, Any], *kinds: str) -> TeacherSection:
    parts = [{"type": f"sentence_transformers.models.{kind}", "path": f"{kind}"} for kind in kinds]
    folder.mkdir()
    (folder / "modules.json").write_text(json.dumps(parts), encoding="utf-8")
    if "Pooling" in kinds:
        (folder / "Pooling").mkdir()
        (folder / "Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    return TeacherSection(model=str(folder))


@pytest.mark.parametrize(
    ("config", "kinds", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, ("Normalize",), ("mean", True)),
        ({"pooling_mode_cls_token": True}, (), ("cls", False)),
        ({"pooling_mode": "cls"}, (), ("cls", False)),
    ],
)
def test_pooling_is_the_teachers(
    tmp_path: Path, task: TaskData, config: dict[str, Any], kinds: tuple[str, ...], expected: tuple[str, bool]
) -> None:
    section = modules(tmp_path / "teacher", config, "Transformer", "Pooling", *kinds)
    found: Any = task.of_teacher(section)
    assert (found.pooling, found.normalised) == expected
    chosen: Any = task.of_teacher(dataclasses.replace(section, pooling="mean"))
    assert chosen.pooling == "mean"


def test_a_teacher_without_modules_is_read_by_the_mean(
    task: TaskData, tmp_path: Path, tiny_bert_config: Any
) -> None:
    BertModel(tiny_bert_config).save_pretrained(tmp_path / "teacher")
    found: Any = task.of_teacher(TeacherSection(model=str(tmp_path / "teacher")))
    assert (found.pooling, found.normalised) == ("mean", False)


@pytest.mark.parametrize(
    ("config", "kinds", "message"),
    [
        ({"pooling_mode_max_tokens": True}, (), "got 'pooling_mode_max_tokens'"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, (), "mean, cls"),
        ({"pooling_mode_mean_tokens": True}, ("Dense",), "with Dense"),
    ],
)
def test_what_a_student_can_not_have_is_refused(
    tmp_path: Path, task: TaskData, config: dict[str, Any], kinds: tuple[str, ...], message: str
) -> None:
    section = modules(tmp_path / "teacher", config, "Transformer", "Pooling", *kinds)
    with pytest.raises(InvalidInput, match=message):
        task.of_teacher(section)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_loads_the_folder(
    tmp_path: Path, task: TaskData, tiny_bert_config: Any, tiny_tokenizer: Any, pooling: str
) -> None:
    library = pytest.importorskip("sentence_transformers")
    task = dataclasses.replace(task, pooling=pooling, normalised=True)
    model = model_of(tiny_bert_config, 0)
    model.save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    for name, value in task.extra_files(model.config).items():
        write_json(tmp_path / "student" / name, value)
    loaded = library.SentenceTransformer(str(tmp_path / "student"), device="cpu")
    found = loaded.encode(TEXTS, convert_to_numpy=True)
    rows = [{"input_ids": tiny_tokenizer(text)["input_ids"]} for text in TEXTS]
    wanted = np.stack(predict(model, rows, reduce=task.reduced))
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert loaded.max_seq_length == task.max_length
    assert loaded.similarity_fn_name == "cosine"
