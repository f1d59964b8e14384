"""Token classification: tags on first tokens, scores over words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification

from hf_kdnas.errors import InvalidInput
from hf_kdnas.recipe import DataSection
from hf_kdnas.tasks import TaskData, evaluate_model, load_task, predict

# [UNK] for one word; the tokenizer cuts "good-film" in three.
ROWS = [
    (["the", "good-film", "was", "fine"], ["O", "B-X", "O", "I-X"]),
    (["dull"], ["B-X"]),
    (["a", "nowhere", "film"], ["O", "O", "I-X"]),
]


def write(path: Path, rows: list[tuple[list[str], Any]]) -> DataSection:
    lines = [json.dumps({"tokens": words, "ner_tags": tags}) for words, tags in rows]
    path.write_text("\n".join(lines * 20), encoding="utf-8")
    return DataSection(path=str(path), task="token-classification")


@pytest.fixture
def task(tmp_path: Path, tiny_tokenizer: Any) -> TaskData:
    return load_task(write(tmp_path / "rows.jsonl", ROWS), tiny_tokenizer)


def test_a_words_tag_stands_on_its_first_token(task: TaskData, tiny_tokenizer: Any) -> None:
    assert task.label_names == ("B-X", "I-X", "O")
    seen = {" ".join(tiny_tokenizer.convert_ids_to_tokens(row["input_ids"])): row for row in task.train}
    assert set(seen) == {
        "[CLS] the good [UNK] film was fine [SEP]",
        "[CLS] dull [SEP]",
        "[CLS] a [UNK] film [SEP]",
    }
    row = seen["[CLS] the good [UNK] film was fine [SEP]"]
    assert row["labels"] == [-100, 2, 0, -100, -100, 2, 1, -100]
    assert seen["[CLS] dull [SEP]"]["labels"] == [-100, 0, -100]


def test_words_that_are_cut_off_have_no_tag(tmp_path: Path, tiny_tokenizer: Any) -> None:
    rows = [(["film"] * 30, ["B-X"] * 29 + ["O"])]
    data = dataclasses.replace(write(tmp_path / "rows.jsonl", rows), max_length=10)
    (row, *_) = load_task(data, tiny_tokenizer).train
    assert len(row["input_ids"]) == len(row["labels"]) == 10
    assert row["labels"].count(0) == 8


def test_names_of_ids_come_from_the_data_set(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    names = ["O", "B-X", "I-X"]
    features = Features({"tokens": Sequence(Value("string")), "tags": Sequence(ClassLabel(names=names))})
    rows = [{"tokens": words, "tags": [names.index(tag) for tag in tags]} for words, tags in ROWS * 20]
    Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "rows.parquet"))
    data = DataSection(path=str(tmp_path / "rows.parquet"), task="token-classification", label="tags")
    assert load_task(data, tiny_tokenizer).label_names == ("O", "B-X", "I-X")


def test_tags_follow_the_order_of_the_head(task: TaskData, tiny_bert_config: Any) -> None:
    tiny_bert_config.id2label = dict(enumerate(["o", "b-x", "i-x"]))
    matched = task.matched_to(tiny_bert_config)
    assert matched.label_names == ("o", "b-x", "i-x")
    new_ids = {0: 1, 1: 2, 2: 0, -100: -100}
    for before, after in zip(task.selection, matched.selection, strict=True):
        assert after["labels"] == [new_ids[label] for label in before["labels"]]


def test_predictions_are_those_of_each_token(task: TaskData, tiny_bert_config: Any) -> None:
    tiny_bert_config.update(task.config_fields())
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(tiny_bert_config).eval()
    right = []
    for row, logits in zip(task.train, predict(model, task.train, batch_size=7), strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].numpy()
        np.testing.assert_allclose(logits, alone, atol=1e-5)
        labels = zip(row["labels"], alone.argmax(-1), strict=True)
        right += [label == found for label, found in labels if label >= 0]
    assert evaluate_model(model, task.train, task)["accuracy"] == pytest.approx(np.mean(right))


def one_hot(row: dict[str, Any], ids: list[int]) -> Any:
    """Logits of three classes that say these ids on the tagged tokens, in order."""
    logits = np.zeros((len(row["labels"]), 3))
    tagged = [place for place, label in enumerate(row["labels"]) if label >= 0]
    logits[tagged, ids] = 1.0
    return logits


def test_spans_count_where_all_their_words_are_right(task: TaskData) -> None:
    """The ids are B-X, I-X, O. Of the text's three spans one is found, and one more that isn't there."""
    rows = [
        {"labels": [-100, 0, 1, -100, 2, 0, -100]},  # B I O B
        {"labels": [-100, 0, 1, -100]},  # B I
    ]
    outputs = [one_hot(rows[0], [0, 1, 2, 2]), one_hot(rows[1], [0, 0])]
    scores = task.score(outputs, rows)
    assert task.metric == "seqeval"
    assert scores["seqeval"] == pytest.approx(2 * (1 / 3) * (1 / 3) / (2 / 3))
    assert scores["accuracy"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("tags", "options", "expected"),
    [
        (["B-X", "I-X", "O"], {"metric": "accuracy"}, ("accuracy",)),
        (["NOUN", "VERB", "NOUN"], {}, ("accuracy",)),
        (["o", "b-x", "i-x"], {}, ("seqeval", "accuracy")),
    ],
)
def test_spans_are_scored_where_tags_mark_them(
    tmp_path: Path, tiny_tokenizer: Any, tags: list[str], options: dict[str, Any], expected: tuple[str, ...]
) -> None:
    data = write(tmp_path / "rows.jsonl", [(["the", "film", "was"], tags)])
    task = load_task(dataclasses.replace(data, **options), tiny_tokenizer)
    assert task.metrics == expected
    right = [np.eye(len(task.label_names))[np.maximum(row["labels"], 0)] for row in task.train]
    assert task.score(right, task.train) == dict.fromkeys(expected, 1.0)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([(["a", "film"], ["O"])], {}, "1 tags beside 2 words in row 0 of the train rows"),
        ([(["a", "film"], ["O", "B"])], {"labels": ["O", "B-X"]}, "holds B, O"),
        ([(["a", "film"], "O")], {}, "needs lists of tags"),
        ([(["a", "film"], [0.5, 1.0])], {}, "lists with float"),
        ([("a film", ["O", "B"])], {}, "needs lists of words"),
        (ROWS, {"metric": "pearson"}, "scored by seqeval, accuracy"),
        (ROWS, {"text": ["ner_tags"], "label": "tokens", "metric": "matthews"}, "scored by accuracy"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, tiny_tokenizer: Any, rows: list[Any], options: dict[str, Any], message: str
) -> None:
    data = dataclasses.replace(write(tmp_path / "rows.jsonl", rows), **options)
    with pytest.raises(InvalidInput, match=message):
        load_task(data, tiny_tokenizer)


def test_byte_level_words_have_their_space(
    tmp_path: Path, tiny_roberta_config: Any, tiny_tokenizer: Any
) -> None:
    """RoBERTa's tokenizer takes words one by one only if it puts a space before each."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import RobertaTokenizerFast

    from hf_kdnas.recipe import TeacherSection
    from hf_kdnas.teacher import load_tokenizer

    letters = sorted(ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])}
    for letter in letters:
        vocabulary[letter] = len(vocabulary)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    files = {"vocab_file": str(tmp_path / "vocab.json"), "merges_file": str(tmp_path / "merges.txt")}
    tokenizer = RobertaTokenizerFast(**files, vocab=vocabulary, merges=[])
    tiny_roberta_config.vocab_size = len(vocabulary)
    tokenizer.save_pretrained(tmp_path / "base")
    tiny_roberta_config.save_pretrained(tmp_path / "base")
    section = TeacherSection(model=str(tmp_path / "base"))
    loaded = load_tokenizer(section, tiny_roberta_config, task="token-classification")
    task = load_task(write(tmp_path / "rows.jsonl", ROWS), loaded)
    tags = sum(label >= 0 for row in task.train for label in row["labels"])
    words = sum(loaded.convert_ids_to_tokens(row["input_ids"]).count("Ġ") for row in task.train)
    assert tags == words > 0
