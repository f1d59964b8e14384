"""What an evaluation is of, and what it is refused for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_kdnas.errors import InvalidInput
from hf_kdnas.evaluation import runs
from hf_kdnas.evaluation.suite import load_suite
from hf_kdnas.metrics import GLUE
from hf_kdnas.recipe import EvaluationSection
from hf_kdnas.run import read_json
from hf_kdnas.workflows import evaluate

Settings = Callable[..., EvaluationSection]


def test_tasks_are_read_in_the_layout_of_the_hub(student: Path, settings: Settings) -> None:
    suite = load_suite(str(student), settings(tasks=["sst2", "mrpc", "stsb", "mnli"]))
    rows = {
        task: {split: len(each.reporting) for split, each in splits.items()}
        for task, splits in suite.reporting.items()
    }
    assert rows == {
        "sst2": {"validation": 30},
        "mrpc": {"validation": 30},
        "stsb": {"validation": 30},
        "mnli": {"validation_matched": 30, "validation_mismatched": 20},
    }
    for task, splits in suite.reporting.items():
        for each in splits.values():
            assert each.metrics == GLUE[task].metrics
            assert each.label_names == GLUE[task].labels
    mrpc = suite.training("mrpc")
    assert len(mrpc.train) + len(mrpc.selection) == 96
    assert set(mrpc.train[0]["token_type_ids"]) == {0, 1}


def test_the_same_weights_in_other_heads_are_another_model(
    student: Path, settings: Settings, tmp_path: Path
) -> None:
    """Members of a SuperLM may differ in their number of heads alone."""
    shutil.copytree(student, tmp_path / "other")
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    config["num_attention_heads"] //= 2
    (tmp_path / "other" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    suite = load_suite(str(student), settings(tasks=["rte"]))
    assert suite.with_model(str(student)).keys == suite.keys
    assert suite.with_model(str(tmp_path / "other")).keys != suite.keys


def test_texts_cut_at_another_length_are_other_rows(student: Path, settings: Settings) -> None:
    keys = {
        load_suite(str(student), settings(tasks=["rte"], max_length=most)).keys["rte"] for most in (40, 41)
    }
    assert len(keys) == 2


def test_a_row_that_no_look_is_taken_at_counts(
    glue: Path, student: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of all labels changes the key, and nothing else does."""
    monkeypatch.setattr("hf_kdnas.evaluation.suite.LOOKED_AT", 8)
    file = glue / "rte" / "train.parquet"
    columns = pyarrow.parquet.read_table(file).to_pydict()
    keys = [load_suite(str(student), settings(tasks=["rte"])).keys["rte"] for _ in range(2)]
    for row in range(5):
        columns["label"][row] = 1 - columns["label"][row]
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
        keys.append(load_suite(str(student), settings(tasks=["rte"])).keys["rte"])
    assert keys[0] == keys[1]
    assert len(set(keys)) == 6


def test_without_a_folder_tasks_come_from_the_shared_data(
    glue: Path, student: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDNAS_DATA", str(glue.parent))
    suite = load_suite(str(student), settings(data=None, tasks=["mnli"]))
    assert [len(each.reporting) for each in suite.reporting["mnli"].values()] == [30, 20]


def test_each_run_begins_with_the_models_weights_and_a_new_head(
    student: Path, settings: Settings, tmp_path: Path, tiny_bert_config: Any, tiny_tokenizer: Any
) -> None:
    """A head of another task of as many classes, and one of other labels, give way."""
    trained = AutoModelForSequenceClassification.from_config(tiny_bert_config)
    trained.save_pretrained(tmp_path / "with-head")
    tiny_tokenizer.save_pretrained(tmp_path / "with-head")
    suite = load_suite(str(tmp_path / "with-head"), settings(tasks=["sst2", "mnli"]))
    starts = [suite.start(suite.training("sst2"), seed) for seed in (0, 0, 1)]
    heads = [each.classifier.weight for each in starts]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], trained.classifier.weight)
    for name, weight in trained.bert.state_dict().items():
        assert torch.equal(starts[2].bert.state_dict()[name], weight)
    assert suite.start(suite.training("mnli"), 0).classifier.out_features == 3
    assert suite.start(suite.training("mnli"), 0).config.id2label[1] == "neutral"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["sst-2"]}, r"tasks: got 'sst-2'.*cola, sst2.*Did you mean sst2\?"),
        ({"tasks": []}, "tasks: got \\[\\]; must hold at least one"),
        ({"seeds": []}, "seeds: got \\[\\]; must hold at least one"),
        ({"seeds": [1, 1]}, "seeds: got \\[1, 1\\].*each once"),
        ({"seeds": [-1]}, "seeds: got -1; must be at least 0"),
        ({"learning_rates": [0.0]}, "learning_rates: got 0.0; must be above 0"),
        ({"batch_sizes": []}, "batch_sizes"),
        ({"precision": "fp8"}, "precision: got 'fp8'; allowed are auto, fp32, bf16"),
    ],
)
def test_settings_that_cannot_be_used(settings: Settings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        settings(**changes)


def _drop_columns(glue: Path, student: Path) -> None:
    shutil.rmtree(glue / "rte")
    shutil.copytree(glue / "sst2", glue / "rte")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda glue, student: shutil.rmtree(glue / "rte"),
            r"data: got .*no folder rte; there are cola, mnli",
        ),
        (lambda glue, student: shutil.rmtree(glue), "data: got .*no folder sst2; there are none"),
        (lambda glue, student: (glue / "rte" / "validation.parquet").unlink(), "rte: data.path: got .*rte"),
        (_drop_columns, "rte: data.text: got 'sentence1'; columns are sentence, label"),
        (lambda glue, student: (student / "config.json").unlink(), "^model: got .*no config"),
        (lambda glue, student: (student / "model.safetensors").unlink(), "^model: got .*no safetensors"),
        (lambda glue, student: shutil.rmtree(student), "^model: got .*must be a Hub id, a folder"),
    ],
    ids=["no task", "no folder", "no split", "no column", "no config", "no weights", "no model"],
)
def test_what_is_missing_is_refused_before_any_work(
    glue: Path,
    student: Path,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path, Path], None],
    message: str,
) -> None:
    monkeypatch.setattr(runs, "train_alone", lambda *arguments, **options: pytest.fail("it was trained"))
    spoil(glue, student)
    with pytest.raises(InvalidInput, match=message):
        evaluate(str(student), settings(tasks=["sst2", "rte"]), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("someone/glue", r"rte: data.path: got 'someone/glue \(rte\)'.*HF_HUB_OFFLINE is set"),
        ("./someone/glue", "data: got './someone/glue'; it has no folder rte"),
        ("glue", "data: got 'glue'; it has no folder rte"),
    ],
)
def test_what_is_no_folder_may_be_a_name_of_the_hub(
    student: Path, settings: Settings, data: str, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_suite(str(student), settings(data=data, tasks=["rte"]))


def test_a_folder_of_other_settings_is_refused(student: Path, settings: Settings, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    evaluate(str(student), settings(seeds=[0]), output_dir=out)
    with pytest.raises(InvalidInput, match=r"output_dir.*other settings.*--resume.*--overwrite"):
        evaluate(str(student), settings(), output_dir=out)
    evaluate(str(student), settings(), output_dir=out, resume=True)
    assert read_json(tmp_path / "out" / "results.json")["seeds"] == [0, 1]
    assert "seeds: [0, 1]" in (tmp_path / "out" / "evaluation.yaml").read_text(encoding="utf-8")
