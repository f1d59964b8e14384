"""Classification and regression: rows, heads, scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_kdnas.errors import InvalidInput
from hf_kdnas.recipe import DataSection
from hf_kdnas.tasks import Classification, TaskData, evaluate_model, load_task, predict


def task_of(names: tuple[str, ...], labels: list[int]) -> Classification:
    rows = [{"input_ids": [1], "labels": label, "index": index} for index, label in enumerate(labels)]
    return Classification(
        "single_label_classification", names, ("accuracy",), "d", ("text", "label"), 8, 0, rows, rows, rows
    )


def config_of(tiny_bert_config: Any, names: list[str]) -> Any:
    tiny_bert_config.id2label = dict(enumerate(names))
    return tiny_bert_config


def test_rows(task: TaskData, tiny_tokenizer: Any, texts: list[str]) -> None:
    assert task.kind == "single_label_classification"
    assert task.label_names == ("dull", "good")
    assert task.metrics == ("accuracy",)
    assert [len(task.train), len(task.selection), len(task.reporting)] == [49, 5, 6]
    assert [row["index"] for row in task.train] == list(range(49))
    assert set(task.train[0]) == {"input_ids", "labels", "index"}
    assert tiny_tokenizer.decode(task.train[0]["input_ids"]).startswith("[CLS]")
    good = [tiny_tokenizer(texts[index])["input_ids"] for index in (1, 3)]
    assert all(row["labels"] == (row["input_ids"] in good) for row in task.train)


def test_pairs_carry_token_types(tmp_path: Path, tiny_tokenizer: Any, write: Any) -> None:
    data = DataSection(path=write(tmp_path / "rows.jsonl", [0, 1]), text=["text", "other"])
    row = load_task(data, tiny_tokenizer).train[0]
    assert set(row["token_type_ids"]) == {0, 1}
    assert row["input_ids"].count(tiny_tokenizer.sep_token_id) == 2


def test_rows_are_cut_to_the_shorter_of_recipe_and_model(
    tmp_path: Path, tiny_tokenizer: Any, write: Any
) -> None:
    data = DataSection(path=write(tmp_path / "rows.jsonl", [0, 1]), max_length=10)
    assert load_task(data, tiny_tokenizer, max_length=64).max_length == 10
    short = load_task(data, tiny_tokenizer, max_length=8)
    assert max(len(row["input_ids"]) for row in short.train) == short.max_length == 8


def test_a_score_makes_a_regression(tmp_path: Path, tiny_tokenizer: Any, write: Any) -> None:
    task = load_task(DataSection(path=write(tmp_path / "rows.jsonl", [0.5, 1.0, 2.5])), tiny_tokenizer)
    assert (task.kind, task.num_labels, task.metrics) == ("regression", 1, ("pearson", "spearman"))
    assert task.config_fields()["num_labels"] == 1
    assert {type(row["labels"]) for row in task.train} == {float}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"metric": "f1"}, ("f1", "accuracy")),
        ({"metric": "accuracy"}, ("accuracy",)),
        ({}, ("accuracy",)),
    ],
)
def test_metrics(
    tmp_path: Path, tiny_tokenizer: Any, options: dict[str, Any], expected: tuple[str, ...], write: Any
) -> None:
    data = DataSection(path=write(tmp_path / "rows.jsonl", [0, 1]), **options)
    assert load_task(data, tiny_tokenizer).metrics == expected


def test_glue_tasks_have_glues_metrics(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    for name in ("cola", "mrpc"):
        (tmp_path / "glue" / name).mkdir(parents=True)
        write(tmp_path / "glue" / name / "train.jsonl", [0, 1])
    monkeypatch.setenv("KDNAS_DATA", str(tmp_path))
    assert load_task(DataSection(path="data:glue/cola"), tiny_tokenizer).metrics == ("matthews",)
    assert load_task(DataSection(path="data:glue/mrpc"), tiny_tokenizer).metric == "accuracy"


def test_an_unknown_metric_is_refused(tmp_path: Path, tiny_tokenizer: Any, write: Any) -> None:
    data = DataSection(path=write(tmp_path / "rows.jsonl", [0, 1]), metric="acuracy")
    with pytest.raises(InvalidInput, match=r"data\.metric"):
        load_task(data, tiny_tokenizer)


def test_the_head_carries_the_labels(task: TaskData, tiny_bert_config: Any) -> None:
    tiny_bert_config.update(task.config_fields())
    assert tiny_bert_config.num_labels == 2
    assert tiny_bert_config.id2label == {0: "dull", 1: "good"}
    assert tiny_bert_config.label2id == {"dull": 0, "good": 1}
    assert tiny_bert_config.problem_type == "single_label_classification"
    assert task.head_class.__name__ == "AutoModelForSequenceClassification"


def test_a_head_without_names_is_taken_by_the_ids(tiny_bert_config: Any) -> None:
    task = task_of(("no", "yes"), [0, 1])
    assert task.matched_to(tiny_bert_config) is task


def test_data_without_names_take_those_of_the_head(tiny_bert_config: Any) -> None:
    matched = task_of(("0", "1"), [0, 1]).matched_to(config_of(tiny_bert_config, ["no", "yes"]))
    assert matched.label_names == ("no", "yes")
    assert [row["labels"] for row in matched.train] == [0, 1]


def test_class_ids_follow_the_order_of_the_head(tiny_bert_config: Any) -> None:
    task = task_of(("entailment", "neutral", "contradiction"), [0, 1, 2, 0])
    head = config_of(tiny_bert_config, ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"])
    matched = task.matched_to(head)
    assert matched.label_names == ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")
    for rows in (matched.train, matched.selection, matched.reporting):
        assert [row["labels"] for row in rows] == [2, 1, 0, 2]
    assert [row["labels"] for row in task.train] == [0, 1, 2, 0]


@pytest.mark.parametrize("names", [["a", "b", "c"], ["neg", "pos"]])
def test_labels_that_do_not_match_the_head_are_refused(tiny_bert_config: Any, names: list[str]) -> None:
    with pytest.raises(InvalidInput, match=names[0]):
        task_of(("no", "yes"), [0, 1]).matched_to(config_of(tiny_bert_config, names))


def test_a_score_needs_a_head_of_one(
    tmp_path: Path, tiny_tokenizer: Any, tiny_bert_config: Any, write: Any
) -> None:
    task = load_task(DataSection(path=write(tmp_path / "rows.jsonl", [0.5, 1.0])), tiny_tokenizer)
    with pytest.raises(InvalidInput, match="the data have a score"):
        task.matched_to(tiny_bert_config)


def test_scores_of_a_model(task: TaskData, tiny_bert_config: Any, make_model: Any) -> None:
    model = make_model(tiny_bert_config)
    right = [row["labels"] for row in task.train] == np.argmax(predict(model, task.train), -1)
    assert evaluate_model(model, task.train, task) == {"accuracy": pytest.approx(right.mean())}


def test_scores_of_logits() -> None:
    task = task_of(("a", "b", "c"), [0, 0, 1, 2])
    logits = np.eye(3)[[0, 1, 1, 2]]
    assert task.score(logits, task.train) == {"accuracy": 0.75}
    with_f1 = dataclasses.replace(task, metrics=("f1",))
    assert with_f1.score(logits, task.train)["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    score = dataclasses.replace(task, kind="regression", label_names=(), metrics=("spearman",))
    assert score.score(np.array([[0.1], [0.1], [3.0], [9.0]]), task.train) == {"spearman": pytest.approx(1.0)}


def multi_label(names: tuple[str, ...], labels: list[list[float]]) -> Classification:
    kind = "multi_label_classification"
    task = task_of(names, [])
    rows = [{"input_ids": [1], "labels": row} for row in labels]
    return dataclasses.replace(
        task, kind=kind, metrics=("f1", "accuracy"), train=rows, selection=rows, reporting=rows
    )


def test_lists_of_labels_become_multi_hot(tmp_path: Path, tiny_tokenizer: Any, write: Any) -> None:
    path = write(tmp_path / "rows.jsonl", [["sad"], ["good", "sad"], [], ["dull"]])
    task = load_task(DataSection(path=path), tiny_tokenizer)
    assert (task.kind, task.label_names) == ("multi_label_classification", ("dull", "good", "sad"))
    assert task.metrics == ("f1", "accuracy")
    assert task.config_fields()["problem_type"] == "multi_label_classification"
    assert {tuple(row["labels"]) for row in task.train} == {(0, 0, 1), (0, 1, 1), (0, 0, 0), (1, 0, 0)}
    assert {type(each) for row in task.train for each in row["labels"]} == {float}


def test_names_of_lists_come_from_the_data_set(tmp_path: Path, tiny_tokenizer: Any, texts: list[str]) -> None:
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    names = ["dull", "good"]
    features = Features({"text": Value("string"), "label": Sequence(ClassLabel(names=names))})
    rows = [{"text": texts[index % 4], "label": [[1], [0, 1]][index % 2]} for index in range(40)]
    Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "rows.parquet"))
    task = load_task(DataSection(path=str(tmp_path / "rows.parquet")), tiny_tokenizer)
    assert task.label_names == ("dull", "good")
    assert {tuple(row["labels"]) for row in task.train} == {(0, 1), (1, 1)}


def test_a_flag_for_each_class_is_refused(tmp_path: Path, tiny_tokenizer: Any, write: Any) -> None:
    path = write(tmp_path / "rows.jsonl", [[0, 1, 1], [1, 0, 0]])
    with pytest.raises(InvalidInput, match="not a 0 or 1 for each class"):
        load_task(DataSection(path=path), tiny_tokenizer)


def test_multi_hot_labels_follow_the_order_of_the_head(tiny_bert_config: Any) -> None:
    task = multi_label(("a", "b", "c"), [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    matched = task.matched_to(config_of(tiny_bert_config, ["c", "a", "b"]))
    assert [row["labels"] for row in matched.train] == [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_head_that_gives_one_label_does_not_give_several(tiny_bert_config: Any, swapped: bool) -> None:
    tasks = [task_of(("no", "yes"), [0, 1]), multi_label(("no", "yes"), [[1.0, 0.0]])]
    task, other = tasks[::-1] if swapped else tasks
    tiny_bert_config.problem_type = other.kind
    with pytest.raises(InvalidInput, match=f"a head for {other.kind}"):
        task.matched_to(tiny_bert_config)


def test_scores_of_several_labels_are_over_pairs_of_row_and_label() -> None:
    task = multi_label(("a", "b", "c"), [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    scores = task.score([np.array([2.0, -1.0, -3.0]), np.array([-0.1, 0.1, 4.0])], task.train)
    assert scores == {"f1": pytest.approx(2 * 2 / (3 + 3)), "accuracy": pytest.approx(4 / 6)}


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_metric_of_scores_does_not_fit_several_labels(
    tmp_path: Path, tiny_tokenizer: Any, metric: str, write: Any
) -> None:
    path = write(tmp_path / "rows.jsonl", [["a"], ["b"]])
    with pytest.raises(InvalidInput, match="scored by accuracy, f1, matthews"):
        load_task(DataSection(path=path, metric=metric), tiny_tokenizer)
