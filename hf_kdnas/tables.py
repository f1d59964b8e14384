"""Rows before they are tokenised: reading data sets, cutting splits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_kdnas.errors import InvalidInput
from hf_kdnas.resources import resolve_data, resolve_path, split_files, why_not_loaded

if TYPE_CHECKING:
    from hf_kdnas.recipe import DataSection

Table: TypeAlias = dict[str, list[Any]]
"""Columns of equal length."""

BUILDERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
# Column that groups phrases with their sentences, where that is asked for; no data set has one of this name.
_SENTENCES = "\0sentences"
COMPRESSIONS = (".bz2", ".gz", ".xz", ".zip", ".zst")


@dataclass(frozen=True)
class Splits:
    """The rows of a task before they are tokenised.

    Attributes:
        train: Rows to learn from.
        selection: Rows to choose by, cut from the training split.
        reporting: Rows to report on.
        class_names: Names that the data set has for its class ids.
    """

    train: Table
    selection: Table
    reporting: Table
    class_names: tuple[str, ...] | None


def load_splits(data: DataSection) -> Splits:
    """The training, selection and reporting rows that a data section asks for.

    Raises:
        InvalidInput: If the data, a split or a column is missing, or a split would be empty.
        MissingPackage: If `data.path` names a package that isn't installed.
    """
    splits = read_splits(data)
    train = _table(data, splits, "train_split", data.train_split)
    if data.group_contained:
        train[_SENTENCES] = containing_texts(train[data.text[0]])
    if data.reporting_split is None:
        train, reporting = _cut(data, train, data.reporting_fraction, "reporting")
    else:
        reporting = _table(data, splits, "reporting_split", data.reporting_split)
    if data.limit is not None:
        order = sorted(range(_rows(train)), key=lambda row: _place(data.split_seed, "limit", row))
        train = _take(train, sorted(order[: data.limit]))
    train, selection = _cut(data, train, data.selection_fraction, "selection")
    feature = splits[data.train_split].features[data.label] if data.label else None
    names = getattr(getattr(feature, "feature", feature), "names", None)  # a list has a feature within
    return Splits(train, selection, reporting, tuple(names) if names else None)


def read_splits(data: DataSection, *, streaming: bool = False) -> Any:
    """All splits, as a `datasets.DatasetDict` or the like, of iterable data sets if they are to be streamed.

    Raises:
        InvalidInput: If they can't be loaded.
        MissingPackage: If `data.path` names a package that isn't installed.
    """
    import datasets

    path, configuration = resolve_data(data.path)
    files: Any = {split: resolve_path(file) for split, file in (data.data_files or {}).items()} or None
    options: dict[str, Any] = {}
    parts = split_files(Path(path))
    if Path(path).is_file():
        if files is not None:
            raise InvalidInput(
                "data.data_files",
                data.data_files,
                f"data.path is a file itself, {data.path}",
                "Set data.path to the files' type (csv, json, parquet or text), or leave data_files out.",
            )
        files = {"train": path}
        path, options = _builder(data.path, Path(path))
    elif parts and files is None:
        path, options = _builder(data.path, next(iter(parts.values())))
        files = {split: str(file) for split, file in parts.items()}
    elif Path(path).suffix in (*BUILDERS, *COMPRESSIONS) and not Path(path).exists():
        raise InvalidInput(
            "data.path", data.path, f"there is no such file, seen from {Path.cwd()}", "Give its full path."
        )
    try:
        with _quiet():
            if (Path(path) / "state.json").is_file():  # from Dataset.save_to_disk
                saved = datasets.load_from_disk(path)
                return {"train": saved.to_iterable_dataset() if streaming else saved}
            return datasets.load_dataset(
                path,
                data.name or configuration,
                data_files=files,
                revision=data.revision,
                streaming=streaming,
                **options,
            )
    # DatasetNotFoundError and EmptyDatasetError are FileNotFoundErrors, going offline a
    # ConnectionError, an unknown configuration or broken file a ValueError.
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        # The cause is what says which line of a file is broken.
        reason = why_not_loaded(path, error.__cause__ or error)
        raise InvalidInput(
            "data.path",
            data.path if data.name is None else f"{data.path} ({data.name})",
            f"it can't be loaded: {reason}",
            "Give a Hub data set, or a folder or file that is there.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of datasets on errors, which it raises as well."""
    from datasets.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _builder(given: str, file: Path) -> tuple[str, dict[str, Any]]:
    """Name and options of what reads a file."""
    suffixes = [suffix for suffix in file.suffixes if suffix not in COMPRESSIONS]
    kind = suffixes[-1] if suffixes else ""
    if kind not in BUILDERS:
        raise InvalidInput(
            "data.path", given, f"files end in {', '.join(BUILDERS)}, perhaps compressed", "Convert it."
        )
    return BUILDERS[kind], {"sep": "\t"} if kind == ".tsv" else {}


def _table(data: DataSection, splits: Any, key: str, name: str) -> Table:
    """The columns that matter of one split, with only the rows that `where` keeps."""
    if name not in splits:
        raise InvalidInput(f"data.{key}", name, f"splits are {', '.join(splits)}", "Choose one of these.")
    split, where = splits[name], data.where or {}
    labels = [data.label] if data.label else []
    wanted = [("text", column) for column in data.text] + [("label", column) for column in labels]
    wanted += [("where", column) for column in where] + ([("group", data.group)] if data.group else [])
    for setting, column in wanted:
        if column not in split.column_names:
            raise InvalidInput(
                f"data.{setting}",
                column,
                f"columns are {', '.join(split.column_names)}",
                "Choose one of these.",
            )
    names = list(dict.fromkeys(column for _, column in wanted))
    # As Arrow's columns: a split's own are read row by row, which takes ten times as long.
    found = split.select_columns(names).with_format("arrow")[:]
    columns = {column: found[column].to_pylist() for column in names}
    kept = [row for row in range(len(split)) if all(columns[name][row] in where[name] for name in where)]
    if not kept:
        raise InvalidInput(
            "data.where", where, f"no row of {name} has these values", _values_seen(columns, where)
        )
    table = _take(columns, kept)
    _refuse_gaps(table, [*data.text, *labels])
    for name in labels:
        if any(map(_is_missing, columns[name])):
            table[name] = _whole_again(table[name])
    if data.task == "token-classification":
        _require_words(table, data.text[0])
    else:
        _require_texts(table, data.text)
    return table if data.label else _without_blanks(table, data.text[0])


def _values_seen(columns: Table, where: Iterable[str]) -> str:
    seen = (f"{name} has {', '.join(sorted(set(map(repr, columns[name])))[:10])}" for name in where)
    return f"Choose of what is there: {'; '.join(seen) or 'nothing'}."


def _refuse_gaps(table: Table, columns: Iterable[str]) -> None:
    for column in columns:
        missing = sum(_is_missing(value) for value in table[column])
        if missing:
            raise InvalidInput(
                f"column {column}",
                f"{missing} of {len(table[column])} rows without a value",
                "every row needs its text and label",
                "Remove these rows from the data, or keep others only with data.where.",
            )


def _require_texts(table: Table, columns: Iterable[str]) -> None:
    for column in columns:
        kinds = sorted({type(value).__name__ for value in table[column]})
        if kinds != ["str"]:
            raise InvalidInput(
                "data.text", f"{column} with {', '.join(kinds)}", "texts are needed", "Choose another column."
            )
        if not any(value.strip() for value in table[column]):
            raise InvalidInput("data.text", column, "all its texts are empty", "Choose another column.")


def _without_blanks(table: Table, column: str) -> Table:
    """Without the rows that say nothing, such as the empty lines between paragraphs."""
    return _take(table, [row for row, text in enumerate(table[column]) if text.strip()])


def _require_words(table: Table, column: str) -> None:
    kinds = {type(value).__name__ for value in table[column]}
    if kinds == {"list"}:
        kinds = {f"lists of {type(word).__name__}" for words in table[column] for word in words}
    if kinds != {"lists of str"}:
        raise InvalidInput(
            "data.text",
            f"{column} with {', '.join(sorted(kinds)) or 'empty lists'}",
            "token classification needs lists of words",
            "Choose another column, or split its texts into words.",
        )


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _whole_again(values: list[Any]) -> list[Any]:
    """Whole numbers that were read as floats because others of their column are missing."""
    whole = all(isinstance(value, float) and value.is_integer() for value in values)
    return [int(value) for value in values] if whole else values


def _rows(table: Table) -> int:
    return len(next(iter(table.values())))


def _take(table: Table, rows: Sequence[int]) -> Table:
    return {name: [values[row] for row in rows] for name, values in table.items()}


def _place(seed: int, purpose: str, unit: Hashable) -> bytes:
    """Where a row or group stands in a drawn order: the same on every machine."""
    return hashlib.blake2b(f"{seed}/{purpose}/{unit}".encode(), digest_size=8).digest()


def _cut(data: DataSection, table: Table, fraction: float, purpose: str) -> tuple[Table, Table]:
    """Cut off a part of the rows; rows of one group stay together.

    Returns:
        The rows that are left, and those cut off: whole groups, drawn until they make `fraction`.
    """
    count = _rows(table)
    groups = table[data.group] if data.group else table.get(_SENTENCES, range(count))
    sizes: dict[Hashable, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    chosen: set[Hashable] = set()
    taken = 0
    for group in sorted(sizes, key=lambda group: _place(data.split_seed, purpose, group)):
        if taken >= round(fraction * count):
            break
        chosen.add(group)
        taken += sizes[group]
    cut = [row for row, group in enumerate(groups) if group in chosen]
    rest = [row for row, group in enumerate(groups) if group not in chosen]
    if not cut or not rest:
        raise InvalidInput(
            f"data.{purpose}_fraction",
            fraction,
            f"it leaves {len(rest)} of {count} rows to train on and {len(cut)} for {purpose}",
            "Give more rows, more groups, or another fraction.",
        )
    return _take(table, rest), _take(table, cut)


def containing_texts(texts: Sequence[str | list[str]]) -> list[int]:
    """For each text the place of the longest one that contains it, word by word; of equals the first.

    Phrases that were cut out of sentences (GLUE's SST-2) come together with their sentence so.
    """
    words = [tuple(text.split() if isinstance(text, str) else text) for text in texts]
    # How long the texts are that begin with a word or two: spans of other lengths need no look.
    lengths: dict[tuple[str, ...], set[int]] = {}
    for each in words:
        lengths.setdefault(each[:2], set()).add(len(each))
    found: dict[tuple[str, ...], int] = {}
    for row in sorted(range(len(words)), key=lambda row: -len(words[row])):
        text = words[row]
        if text in found:
            continue
        found[text] = row
        for start in range(len(text)):
            for opening in (text[start : start + 1], text[start : start + 2]):
                for length in lengths.get(opening, ()):
                    if start + length <= len(text):
                        found.setdefault(text[start : start + length], row)
    return [found[text] for text in words]
