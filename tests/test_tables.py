"""Reading data sets, cutting splits."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from hf_kdnas.errors import InvalidInput
from hf_kdnas.recipe import DataSection
from hf_kdnas.tables import containing_texts, load_splits, read_splits

ROWS = [
    {"text": f"text {index}", "label": index % 2, "film": f"film {index // 4}", "kind": "review"}
    for index in range(200)
]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def texts(table: dict[str, list[Any]]) -> set[str]:
    return set(table["text"])


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path, "rows.jsonl", ROWS)


def test_splits_are_disjoint_complete_and_of_the_right_size(file: str) -> None:
    splits = load_splits(DataSection(path=file, reporting_fraction=0.2, selection_fraction=0.1))
    parts = [texts(splits.train), texts(splits.selection), texts(splits.reporting)]
    assert [len(part) for part in parts] == [144, 16, 40]
    assert set.union(*parts) == {row["text"] for row in ROWS}


def test_splits_depend_on_their_seed_alone(file: str, tmp_path: Path) -> None:
    data = DataSection(path=file)
    first, again = load_splits(data), load_splits(data)
    assert first == again
    other = load_splits(DataSection(path=file, split_seed=1))
    assert texts(other.reporting) != texts(first.reporting)


def test_the_reporting_rows_stay_when_other_settings_change(file: str) -> None:
    whole = load_splits(DataSection(path=file))
    part = load_splits(DataSection(path=file, limit=50, selection_fraction=0.3))
    assert part.reporting == whole.reporting
    assert len(part.train["text"]) + len(part.selection["text"]) == 50
    assert len(part.selection["text"]) == 15
    assert texts(part.train) < texts(whole.train) | texts(whole.selection)


def test_no_group_is_on_both_sides(file: str) -> None:
    splits = load_splits(DataSection(path=file, group="film"))
    films = [set(table["film"]) for table in (splits.train, splits.selection, splits.reporting)]
    assert all(films)
    assert not films[0] & films[1]
    assert not films[0] & films[2]
    assert not films[1] & films[2]


def test_phrases_stay_with_their_sentence(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(40)]
    rows = []
    for sentence in range(30):
        text = [f"sentence{sentence}", *words[sentence % 10 : sentence % 10 + 12]]
        rows += [" ".join(text), " ".join(text[:5]), f"sentence{sentence}"]
    path = tmp_path / "phrases.csv"
    path.write_text(
        "\n".join(["text,label", *(f"{text},{len(text) % 2}" for text in rows)]), encoding="utf-8"
    )
    splits = load_splits(DataSection(path=str(path), group_contained=True, selection_fraction=0.3))
    sides = [
        {text.split()[0] for text in side["text"]}
        for side in (splits.train, splits.selection, splits.reporting)
    ]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 30
    assert len(splits.train["text"]) + len(splits.selection["text"]) + len(splits.reporting["text"]) == 90


def test_a_text_is_grouped_with_the_longest_that_contains_it() -> None:
    texts = [
        "a good film",
        "good",
        "it is a good film indeed",
        "is a",
        "bad",
        "good",
        "film it",
        "it is a good film",
    ]
    assert containing_texts(texts) == [2, 2, 2, 2, 4, 2, 6, 2]


def test_one_group_cannot_be_split(tmp_path: Path) -> None:
    file = write(tmp_path, "rows.jsonl", [{**row, "film": "one"} for row in ROWS])
    with pytest.raises(InvalidInput, match=r"data\.reporting_fraction.*more groups"):
        load_splits(DataSection(path=file, group="film"))


def test_where_keeps_rows(tmp_path: Path) -> None:
    rows = [{**row, "kind": "plot" if index % 5 == 0 else "review"} for index, row in enumerate(ROWS)]
    file = write(tmp_path, "rows.jsonl", rows)
    splits = load_splits(DataSection(path=file, where={"kind": ["review"]}))
    assert sum(len(table["text"]) for table in (splits.train, splits.selection, splits.reporting)) == 160
    with pytest.raises(InvalidInput, match="kind has 'plot', 'review'"):
        load_splits(DataSection(path=file, where={"kind": ["reviews"]}))
    lists = write(tmp_path, "lists.jsonl", [{**row, "kinds": ["plot"]} for row in ROWS])
    with pytest.raises(InvalidInput, match=r"kinds has \['plot'\]"):
        load_splits(DataSection(path=lists, where={"kinds": ["plot"]}))


def test_a_split_of_its_own_is_left_whole(tmp_path: Path) -> None:
    write(tmp_path / "data", "train.jsonl", ROWS[:150])
    write(tmp_path / "data", "validation.jsonl", ROWS[150:])
    splits = load_splits(
        DataSection(path=str(tmp_path / "data"), reporting_split="validation", limit=100, group="film")
    )
    assert texts(splits.reporting) == {row["text"] for row in ROWS[150:]}
    with pytest.raises(InvalidInput, match=r"data\.reporting_split.*splits are train, validation"):
        load_splits(DataSection(path=str(tmp_path / "data"), reporting_split="dev"))


def test_files_that_share_a_beginning_are_splits(tmp_path: Path) -> None:
    """Lines of text, of which the empty ones are left out where no labels belong to them."""
    for split, words in (("train", "one\n\ntwo\nthree\nfour"), ("validation", "five\n \nsix")):
        with gzip.open(tmp_path / f"novels.{split}.txt.gz", "wt", encoding="utf-8") as file:
            file.write(words)
    data = DataSection(
        path=str(tmp_path / "novels"),
        task="fill-mask",
        reporting_split="validation",
        selection_fraction=0.25,
    )
    splits = load_splits(data)
    assert sorted(splits.train["text"] + splits.selection["text"]) == ["four", "one", "three", "two"]
    assert splits.reporting["text"] == ["five", "six"]


def test_files_named_by_split(tmp_path: Path) -> None:
    write(tmp_path / "data", "a.jsonl", ROWS[:150])
    write(tmp_path / "data", "b.jsonl", ROWS[150:])
    data = DataSection(
        path=str(tmp_path / "data"),
        data_files={"train": "a.jsonl", "test": "b.jsonl"},
        reporting_split="test",
    )
    assert len(load_splits(data).reporting["text"]) == 50


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.csv.bz2", "rows.parquet"])
def test_formats(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "rows.parquet":
        from datasets import Dataset

        Dataset.from_list(ROWS).to_parquet(str(path))
    else:
        between = "\t" if name == "rows.tsv" else ","
        lines = [between.join(map(str, row.values())) for row in ROWS]
        content = "\n".join([between.join(ROWS[0]), *lines]).encode()
        path.write_bytes(bz2.compress(content) if name.endswith(".bz2") else content)
    splits = load_splits(DataSection(path=str(path)))
    assert texts(splits.reporting) < {row["text"] for row in ROWS}
    assert set(splits.train["label"]) == {0, 1}


@pytest.mark.parametrize(
    ("options", "field", "part"),
    [
        ({"text": ["sentence"]}, "data.text", "columns are text, label, film, kind"),
        ({"label": "score"}, "data.label", "columns are text, label, film, kind"),
        ({"group": "movie"}, "data.group", "columns are text, label, film, kind"),
        ({"where": {"lang": ["en"]}}, "data.where", "columns are text, label, film, kind"),
        ({"train_split": "training"}, "data.train_split", "splits are train"),
    ],
)
def test_what_is_missing_is_named(file: str, options: dict[str, Any], field: str, part: str) -> None:
    with pytest.raises(InvalidInput, match=part) as caught:
        load_splits(DataSection(path=file, **options))
    assert caught.value.field == field


def test_data_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"data\.path"):
        load_splits(DataSection(path=str(tmp_path / "nothing")))
    (tmp_path / "notes.docx").write_text("x", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"files end in \.csv"):
        load_splits(DataSection(path=str(tmp_path / "notes.docx")))
    (tmp_path / "broken.jsonl").write_text('{"a": ', encoding="utf-8")
    with pytest.raises(InvalidInput, match="can't be loaded"):
        load_splits(DataSection(path=str(tmp_path / "broken.jsonl")))


def test_rows_without_text_or_label_are_counted(tmp_path: Path) -> None:
    rows = [{**row, "text": None if index < 3 else row["text"]} for index, row in enumerate(ROWS)]
    with pytest.raises(InvalidInput, match="column text: got '3 of 200 rows"):
        load_splits(DataSection(path=write(tmp_path, "rows.jsonl", rows)))


@pytest.mark.parametrize(("label", "kind"), [("1", int), ("0.5", float)])
def test_classes_beside_rows_without_one_stay_whole(tmp_path: Path, label: str, kind: type) -> None:
    """pandas reads a column of whole numbers with gaps as floats, which would be scores."""
    path = tmp_path / "gaps.csv"
    lines = [f"text {row},{(0, label, '')[row % 3]}" for row in range(60)]
    path.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    splits = load_splits(DataSection(path=str(path), where={"label": [0, float(label)]}))
    assert {type(value) for value in splits.train["label"]} == {kind}


def test_a_data_set_saved_to_disk(tmp_path: Path) -> None:
    columns = {"text": [f"text {row}" for row in range(30)], "label": [0, 1, 0] * 10}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    data = DataSection(path=str(tmp_path / "saved"))
    assert len(load_splits(data).train["text"]) == 24
    rows = list(read_splits(data, streaming=True)["train"])
    assert [row["text"] for row in rows] == columns["text"]


def test_class_names_of_a_data_set_are_kept(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset

    Dataset.from_list(ROWS).cast_column("label", ClassLabel(names=["bad", "good"])).to_parquet(
        str(tmp_path / "rows.parquet")
    )
    assert load_splits(DataSection(path=str(tmp_path / "rows.parquet"))).class_names == ("bad", "good")
