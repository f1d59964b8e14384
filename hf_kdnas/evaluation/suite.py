"""What an evaluation is of: a model and tasks of GLUE, checked before any of them is fine-tuned."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from hf_kdnas.architecture import Architecture
from hf_kdnas.content import columns_hash, rows_hash, settings_hash, weights_hash
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family
from hf_kdnas.metrics import GLUE
from hf_kdnas.recipe import DataSection, EvaluationSection, TeacherSection, TrainingSection
from hf_kdnas.resources import resolve_data
from hf_kdnas.tables import read_splits
from hf_kdnas.tasks import Classification, TaskData, load_task
from hf_kdnas.teacher import load_config, load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Training rows that a task is looked at with before the work begins: all of them take minutes to read.
LOOKED_AT = 1000

# OWNER/NAME; a relative path that begins with a dot is none.
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Suite:
    """A model and its tasks.

    Attributes:
        model: Where the model is.
        section: The settings.
        tokenizer: The model's.
        longest: Most tokens that the model takes.
        reporting: By task and split, the rows to report on, beside some of the training rows.
        rows: By task, hashes of all rows that its scores follow from.
        parameters: Number of the model's parameters, without a head.
        keys: For each task a hash of what its scores follow from, besides what differs between its runs.
    """

    model: TeacherSection
    section: EvaluationSection
    tokenizer: PreTrainedTokenizerBase
    longest: int
    reporting: dict[str, dict[str, TaskData]]
    rows: dict[str, list[str]]
    parameters: int
    keys: dict[str, str]

    def training(self, task: str) -> TaskData:
        """A task with all its training rows; its selection rows are those that are held out."""
        return _load(task, GLUE[task].splits[0], self.section, self.tokenizer, self.longest)

    def with_model(self, model: str) -> Suite:
        """The same tasks for another model, one that has the same tokenizer.

        Raises:
            InvalidInput: If it can't be fine-tuned.
        """
        asked = _asked(model, self.section)
        with _named(lambda field: field.replace("teacher.model", "model")):
            some_task = next(iter(self.reporting[self.section.tasks[0]].values()))
            base = cast("PreTrainedModel", load_model(asked, some_task, seed=0).base_model)
        # Of shapes that differ in heads or activation alone the weights may be the same.
        model_key = [weights_hash(base), Architecture.from_config(base.config).key]
        settings = [asdict(TrainingSection(precision=self.section.precision)), self.section.max_length]
        keys = {task: settings_hash(model_key, settings, rows) for task, rows in self.rows.items()}
        return replace(self, model=asked, parameters=base.num_parameters(), keys=keys)

    def start(self, task: TaskData, seed: int) -> PreTrainedModel:
        """The model with a new head: one that it brings, of whatever task, plays no part.

        Args:
            task: The task.
            seed: Decides the head.
        """
        loaded = load_model(self.model, task, seed)
        torch.manual_seed(seed)
        model: PreTrainedModel = type(loaded)(loaded.config)
        model.base_model.load_state_dict(loaded.base_model.state_dict())
        return model


def load_suite(model: str, section: EvaluationSection) -> Suite:
    """Load what is cheap, and check that all else can be.

    Args:
        model: Folder or Hub id of a model, with or without a head.
        section: The settings.

    Raises:
        InvalidInput: If the model can't be fine-tuned, or a task's data are not there or not as they
            should be.
    """
    asked = _asked(model, section)
    with _named(lambda field: field.replace("teacher.model", "model")):
        config = load_config(asked, Classification.head)
        tokenizer = load_tokenizer(asked, config)
    longest = get_family(config).max_length(config)
    reporting = {
        task: {
            split: _load(task, split, section, tokenizer, longest, limit=LOOKED_AT)
            for split in GLUE[task].splits
        }
        for task in section.tasks
    }
    rows = {task: _rows_hashes(task, section, splits) for task, splits in reporting.items()}
    suite = Suite(asked, section, tokenizer, longest, reporting, rows, parameters=0, keys={})
    return suite.with_model(model)


def _asked(model: str, section: EvaluationSection) -> TeacherSection:
    # It is fine-tuned here, whatever these settings are: any head will do.
    return TeacherSection(model=model, revision=section.revision, fine_tune=TrainingSection())


def _rows_hashes(task: str, section: EvaluationSection, splits: Mapping[str, TaskData]) -> list[str]:
    """Of all training rows as they are read, and of those that are tokenised: what became of the texts."""
    known = GLUE[task]
    train = read_splits(_data(task, known.splits[0], section))["train"]
    # The columns of a Dataset itself take ten times as long.
    found = [columns_hash(train.data.column(name) for name in (*known.text, "label"))]
    for each in splits.values():
        found += [rows_hash(rows) for rows in (each.train, each.selection, each.reporting)]
    return found


def _load(
    task: str,
    split: str,
    section: EvaluationSection,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    limit: int | None = None,
) -> TaskData:
    data = _data(task, split, section, limit)
    with _named(lambda field: f"{task}: {field}"):
        # What a recipe's metric brings beside it is not what GLUE reports.
        return replace(load_task(data, tokenizer, max_length=longest), metrics=GLUE[task].metrics)


def _data(task: str, split: str, section: EvaluationSection, limit: int | None = None) -> DataSection:
    known, (path, configuration) = GLUE[task], _place(task, section.data)
    return DataSection(
        path=path,
        name=configuration,
        data_files=_files(path, ("train", split)),
        text=list(known.text),
        label="label",
        labels=list(known.labels) or None,
        metric=known.metrics[0],
        reporting_split=split,
        selection_fraction=section.held_out,
        # SST-2 holds the phrases of its sentences. With a limit the split is not what counts.
        group_contained=task == "sst2" and limit is None,
        max_length=section.max_length,
        limit=limit,
    )


def _place(task: str, given: str | None) -> tuple[str, str | None]:
    """Where a task is, and its configuration on the Hub."""
    if given is None:
        return f"data:glue/{task}", None
    root = Path(given).expanduser()
    if not root.exists() and _HUB_ID.fullmatch(given):
        return given, task
    if not (root / task).is_dir():
        found = sorted(each.name for each in root.iterdir() if each.is_dir()) if root.is_dir() else []
        raise InvalidInput(
            "data",
            given,
            f"it has no folder {task}; there are {', '.join(found) or 'none'}",
            "Give the folder that holds one for each task, or a Hub id, or choose other tasks.",
        )
    return str(root / task), None


def _files(path: str, splits: tuple[str, ...]) -> dict[str, str] | None:
    """Files of splits in a local folder: by itself, datasets takes both of MNLI's for `validation`."""
    local = Path(resolve_data(path)[0]).is_dir()
    return {split: f"{split}[.-]*" for split in splits} if local else None


@contextmanager
def _named(rename: Callable[[str], str]) -> Iterator[None]:
    """Name a recipe's setting as it is called here."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(rename(error.field), error.given, error.allowed, error.remedy) from error
