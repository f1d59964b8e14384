"""What a task is: its rows, its head, its scores."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from hf_kdnas import metrics
from hf_kdnas.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from hf_kdnas.recipe import DataSection, TeacherSection
    from hf_kdnas.tables import Splits
    from hf_kdnas.tasks.masking import Masking

Row: TypeAlias = dict[str, Any]
"""`input_ids`, `token_type_ids` (pairs of texts), `index` within the split, and what the task adds."""


@dataclass(frozen=True)
class TaskData(ABC):
    """A task and its rows.

    Selection rows are held out from the training split, to choose students by; reporting rows are
    for the report alone.

    Attributes:
        head: What stands after `AutoModelFor` in the name of the class with this task's head; empty where
            the encoder alone does.
        unfit_objectives: Objectives that this task has nothing for.
        evaluation_batch_size: Rows in a batch where nothing is trained.
        kind: Transformers' `problem_type` of a classification; the task's name where there is but one.
        label_names: Class names in the order of their ids; empty where the head has no classes.
        metrics: Names of the metrics; the first is the one to select by.
        dataset: Where the rows are from, as the recipe says it.
        columns: The text columns, and the label column where there is one.
        max_length: Most tokens of a row.
        pad_token_id: The tokenizer's.
        train: Rows to learn from.
        selection: Rows to choose by.
        reporting: Rows to report on.
        masking: Hides tokens of training rows, anew in every epoch, where the task is to find them.
    """

    head: ClassVar[str]
    unfit_objectives: ClassVar[frozenset[str]] = frozenset({"mlm"})
    evaluation_batch_size: ClassVar[int] = 64

    kind: str
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    dataset: str
    columns: tuple[str, ...]
    max_length: int
    pad_token_id: int
    train: list[Row]
    selection: list[Row]
    reporting: list[Row]
    masking: Masking | None = None

    @classmethod
    @abstractmethod
    def load(
        cls, data: DataSection, splits: Splits, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Self:
        """Read the labels and tokenise the rows.

        Raises:
            InvalidInput: If the columns or the metric don't fit the task.
        """

    @abstractmethod
    def config_fields(self) -> dict[str, Any]:
        """What this task sets in a model's config."""

    @abstractmethod
    def matched_to(self, config: PretrainedConfig) -> TaskData:
        """The task as a model's own head sees it.

        Raises:
            InvalidInput: If the head is another one.
        """

    @abstractmethod
    def score(self, outputs: Sequence[NDArray[Any]], rows: Sequence[Row]) -> dict[str, float]:
        """All metrics of a model's outputs.

        Args:
            outputs: A model's `reduced` output for each row.
            rows: The rows they belong to.
        """

    def reduced(self, output: NDArray[Any], row: Row) -> NDArray[Any]:
        """What is kept of a model's output for a row: as much as `score` needs."""
        return output

    def of_teacher(self, section: TeacherSection) -> TaskData:
        """The task as a teacher's folder has it.

        Raises:
            InvalidInput: If a student can't do it so.
        """
        return self

    def with_references(self, read: Callable[[Sequence[Row]], Sequence[NDArray[Any]]]) -> TaskData:
        """The task with what the teacher says about rows, where scores compare with that.

        Args:
            read: Gives the teacher's reduced outputs for rows.
        """
        return self

    def extra_files(self, config: PretrainedConfig) -> dict[str, Any]:
        """What this task wants beside a student: JSON by the file's path in its folder.

        Args:
            config: The student's.
        """
        return {}

    def examples(self, rows: Sequence[Row]) -> int:
        """How many examples rows are of: a task may cut one into several rows."""
        return len(rows)

    @property
    def metric(self) -> str:
        """The metric to select by."""
        return self.metrics[0]

    @property
    def head_class(self) -> Any:
        """The Auto class with this task's head."""
        return auto_class(self.head)


def auto_class(head: str) -> Any:
    """The Auto class of a head, named by what stands after `AutoModelFor`; empty for the encoder alone."""
    import transformers

    return getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel")


@dataclass(frozen=True)
class LabelTask(TaskData):
    """A task whose head tells classes apart, or gives one score.

    Attributes:
        alphabetical: Whether the classes are numbered by the alphabet, for want of any other order.
    """

    alphabetical: bool = False

    @property
    def num_labels(self) -> int:
        """Width of the task head."""
        return len(self.label_names) or 1

    def config_fields(self) -> dict[str, Any]:
        """Labels and problem type."""
        names = self.label_names or ("LABEL_0",)
        return {
            "num_labels": self.num_labels,
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": self.problem_type,
        }

    @property
    def problem_type(self) -> str | None:
        """Transformers' `problem_type`; None where the head has no such choice."""
        return None

    def matched_to(self, config: PretrainedConfig) -> TaskData:
        """The task with its class ids in the order of a model's own head.

        Where the head names its classes (other than LABEL_0 ...), names decide, without regard to
        case; a head or data set without names is taken by the ids.

        Raises:
            InvalidInput: If the head has another number of outputs or other names, or neither the head nor
                the data tell the ids of the names.
        """
        names = config.id2label or {}
        head = tuple(names[index] for index in range(config.num_labels))
        if len(head) != self.num_labels:
            wanted = (
                f"{self.num_labels} classes ({', '.join(self.label_names)})"
                if self.label_names
                else "a score"
            )
            raise InvalidInput(
                "teacher.model",
                f"a head with {len(head)} outputs ({', '.join(head)})",
                f"the data have {wanted}",
                "Choose a teacher of this task, or set teacher.fine_tune to train a new head.",
            )
        if not self.label_names:
            return self
        if head == tuple(f"LABEL_{index}" for index in range(len(head))):
            if self.alphabetical:
                raise InvalidInput(
                    "data.labels",
                    "nothing",
                    "the teacher's head has no names for its classes; those of the data are "
                    f"{', '.join(self.label_names)}",
                    "Set data.labels to these names, in the order of the head's ids.",
                )
            return self
        if self.label_names == tuple(map(str, range(len(head)))):
            return dataclasses.replace(self, label_names=head)
        positions = {name.casefold(): index for index, name in enumerate(head)}
        if {name.casefold() for name in self.label_names} != set(positions):
            raise InvalidInput(
                "data.labels",
                list(self.label_names),
                f"the teacher's head has {', '.join(head)}",
                "Set data.labels to the head's names, in the order of the data's class ids.",
            )
        return self._renumbered([positions[name.casefold()] for name in self.label_names], head)

    def _renumbered(self, new_ids: Sequence[int], names: tuple[str, ...]) -> TaskData:
        def renumber(rows: list[Row]) -> list[Row]:
            return [{**row, "labels": self._with_ids(row["labels"], new_ids)} for row in rows]

        return dataclasses.replace(
            self,
            label_names=names,
            train=renumber(self.train),
            selection=renumber(self.selection),
            reporting=renumber(self.reporting),
        )

    @abstractmethod
    def _with_ids(self, labels: Any, new_ids: Sequence[int]) -> Any:
        """A row's labels with the class ids that `new_ids` has at the old ones' places."""


def chosen_metrics(given: str | None, usual: Sequence[str], fitting: Sequence[str]) -> tuple[str, ...]:
    """The metric asked for and the usual ones of this kind of task.

    Args:
        given: The recipe's metric, or None.
        usual: What is reported in any case; the first is selected by where none was asked for.
        fitting: Metrics of the package that can score the task; a user's own one is taken to.

    Raises:
        InvalidInput: If there is no such metric, or it is for other tasks.
    """
    if given is None:
        return tuple(usual)
    if given in metrics.METRICS and given not in fitting:
        raise InvalidInput(
            "data.metric", given, f"this task is scored by {', '.join(fitting)}", "Choose one of these."
        )
    if given not in fitting:
        metrics.load_metric(given)  # refuse an unknown one before any work
    return (given, *(name for name in usual if name != given))


def source(data: DataSection) -> str:
    """Where the rows are from, as the recipe says it."""
    return data.path if data.name is None else f"{data.path} ({data.name})"
