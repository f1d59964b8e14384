"""The part of a recipe that says what the task is, and where its rows are."""

# ruff: noqa: RUF009
# `option` is dataclasses.field with a help text and limits: its calls are no shared defaults.
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hf_kdnas.recipe_files import option

# The usual names of a task's text columns and its label column.
_COLUMNS: dict[str, tuple[tuple[str, ...], str]] = {
    "text-classification": (("text",), "label"),
    "token-classification": (("tokens",), "ner_tags"),
    "question-answering": (("question", "context"), "answers"),
    "fill-mask": (("text",), ""),
    "sentence-similarity": (("text",), ""),
}


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The task: where its rows are, which columns count, how they are split."""

    path: str = field(
        metadata={
            "help": "Hub id, folder (also of `Dataset.save_to_disk`), file (csv, tsv, json, jsonl, parquet, "
            "txt; also compressed), the beginning of files named BEGINNING.SPLIT.txt and the like, "
            "`package:NAME/FILE`, `data:glue/TASK` ($KDNAS_DATA/glue/TASK, else the Hub's nyu-mll/glue), or "
            "`data:text/wikitext-2`"
        }
    )
    name: str | None = option(None, "configuration of the data set on the Hub")
    revision: str | None = option(None, "branch, tag or commit of the data set on the Hub")
    data_files: dict[str, str] | None = option(
        None,
        "files by split, inside a folder or Hub data set; anywhere with `path: csv`, json, parquet or text",
    )
    task: Literal[
        "text-classification",
        "token-classification",
        "question-answering",
        "fill-mask",
        "sentence-similarity",
    ] = option(
        "text-classification",
        "what the model does, under the name that the Hub has for it; the last two learn from texts alone",
    )
    text: list[str] = option(
        [],
        "the column with the text, or two columns for pairs of texts; for token classification the column "
        "with the lists of words; for question answering question and context. Empty means text, tokens, or "
        "question and context",
    )
    label: str = option(
        "",
        "the column with the class, list of classes, or score; the lists of tags, ids or names; the answers "
        "as in SQuAD: {text: [...], answer_start: [...]}. Empty means label, ner_tags or answers, and none "
        "for tasks without labels",
    )
    labels: list[str] | None = option(
        None,
        "class names in the order of their ids; names that the data already has are put in this "
        "order, others replace them",
    )
    where: dict[str, list[Any]] | None = option(None, "keep only rows whose column has one of these values")
    group: str | None = option(None, "column whose rows stay on one side of every split that is cut")
    group_contained: bool = option(
        False,
        "keep texts with the longest text that contains them on one side of every split that is cut (phrases "
        "and their sentences, as in SST-2)",
    )
    train_split: str = option("train", "split to train on")
    reporting_split: str | None = option(
        None, "split that the report is about; null cuts it from the training split"
    )
    reporting_fraction: float = option(
        0.1, "part of the training split that is cut for the report", above=0, most=0.5
    )
    selection_fraction: float = option(
        0.1, "part of the training rows held out to choose students by", above=0, most=0.5
    )
    split_seed: int = option(
        0, "decides the cuts; not the run's seed, so that runs with other seeds are scored on the same rows"
    )
    max_length: int = option(128, "tokens kept of a row, at most as many as the teacher takes", least=8)
    stride: int = option(
        64, "question answering: tokens by which the windows of a long context overlap", least=0
    )
    mlm_probability: float = option(0.15, "fill-mask: part of the tokens that are hidden", above=0, most=0.9)
    limit: int | None = option(None, "at most so many training rows, drawn at random", least=20)
    metric: str | None = option(
        None,
        "accuracy, f1 (macro over more than two classes), matthews, pearson, spearman, or a metric of your "
        "own (`package.module:Class`, or the path of an `evaluate` module); null takes GLUE's own there, "
        "else accuracy or pearson, with several classes a row f1 over all pairs of row and class, for tags "
        "seqeval (f1 of spans) or accuracy over the words, for answers SQuAD's f1 and exact_match, for "
        "hidden tokens accuracy, for sentence embeddings spearman, of their similarities with the "
        "teacher's; pearson and spearman make a text classification a regression",
    )

    def __post_init__(self) -> None:
        text, label = _COLUMNS.get(self.task, _COLUMNS["text-classification"])
        object.__setattr__(self, "text", self.text or list(text))
        object.__setattr__(self, "label", self.label or label)
