"""AutoDistil's search by a task: the best members fine-tuned for a short time, and the best of them taken."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_kdnas.errors import InvalidInput
from hf_kdnas.evaluation.runs import HELD_OUT, Point, Run, carry_out
from hf_kdnas.evaluation.suite import load_suite
from hf_kdnas.metrics import GLUE
from hf_kdnas.recipe import EvaluationSection
from hf_kdnas.recipe_files import nearest

if TYPE_CHECKING:
    from pathlib import Path

    from hf_kdnas.superlm.ranking import Member
    from hf_kdnas.superlm.run import SuperLMRun

_USUAL = EvaluationSection()

# Settings of an evaluation, and how they are called here.
_NAMES = {"data": "proxy_data", "epochs": "proxy_epochs", "learning_rates": "proxy_learning_rate"}

# Where a run folder keeps what members scored.
FOLDER = "proxy"


@dataclass(frozen=True)
class Proxy:
    """A task to choose members by; what isn't given is as for `kdnas evaluate`.

    Attributes:
        task: GLUE's name of it.
        best: This many members are tried, those of the least held-out loss.
        data: Folder or Hub id that holds each task; None takes it from $KDNAS_DATA/glue, else from the Hub.
        epochs: Passes over the training rows.
        learning_rate: The highest.

    Raises:
        InvalidInput: If the task is unknown, or a number is outside its limits.
    """

    task: str
    best: int = 5
    data: str | None = None
    epochs: float = _USUAL.epochs[0]
    learning_rate: float = _USUAL.learning_rates[0]

    def __post_init__(self) -> None:
        if self.task not in GLUE:
            raise InvalidInput(
                "proxy", self.task, f"tasks of GLUE are {', '.join(GLUE)}", nearest(self.task, GLUE)
            )
        if self.best < 1:
            raise InvalidInput("best", self.best, "must be at least 1", "Say how many members to try.")
        with _named():
            self.section(0)

    @property
    def metric(self) -> str:
        """What members are compared by."""
        return GLUE[self.task].metrics[0]

    def section(self, seed: int) -> EvaluationSection:
        """The settings of the fine-tuning."""
        return EvaluationSection(
            data=self.data,
            tasks=[self.task],
            seeds=[seed],
            learning_rates=[self.learning_rate],
            epochs=[self.epochs],
        )


class ProxyTrial:
    """Fine-tunes members of a run's SuperLMs on a task, over all ranks of its launch.

    Scores are those on rows that are held out of the task's training split: its validation split plays no
    part. They stay in the run folder, one file a member and setting, and are found again.

    Args:
        run: The run.
        proxy: The task.
        first: Any member, with which the task is looked at before there is work.

    Raises:
        InvalidInput: If the task's data are not there or not as they should be.
    """

    def __init__(self, run: SuperLMRun, proxy: Proxy, first: Member) -> None:
        self._run = run
        self._proxy = proxy
        with self._extracted([first]) as folders, _named():
            self._suite = load_suite(str(folders[0]), proxy.section(run.recipe.seed))

    def scores(self, members: Sequence[Member]) -> list[float | None]:
        """The score of each member, on every rank; None for one that diverged."""
        section = self._suite.section
        point = Point(section.learning_rates[0], section.epochs[0], section.batch_sizes[0])
        run = Run(self._proxy.task, point, section.seeds[0], choosing=True)
        with self._extracted(members) as folders:
            jobs = [(self._suite.with_model(str(folder)), run) for folder in folders]
            found = carry_out(jobs, self._run.folder / FOLDER, self._run.processes)
        return [each[HELD_OUT][self._proxy.metric] for each in found]

    def choose(self, members: Sequence[Member]) -> tuple[Member, dict[str, Any]]:
        """The member with the highest score; of equals the one of less loss.

        Args:
            members: By their loss, the best first.

        Returns:
            The member, and what `extracted.json` says of its choice.

        Raises:
            InvalidInput: If all of them diverge.
        """
        scores = self.scores(members)
        self._tell(members, scores)
        scored = [(score, member) for score, member in zip(scores, members, strict=True) if score is not None]
        if not scored:
            raise InvalidInput(
                "proxy_learning_rate",
                self._proxy.learning_rate,
                f"{self._proxy.task} diverges with every member",
                "Take a lower one.",
            )
        score, member = max(scored, key=lambda each: each[0])
        return member, {"task": self._proxy.task, "metric": self._proxy.metric, "score": score}

    def _tell(self, members: Sequence[Member], scores: Sequence[float | None]) -> None:
        narrator = self._run.narrator
        narrator.say(f"{self._proxy.task}, {self._proxy.metric} on rows held out of training")
        for member, score in zip(members, scores, strict=True):
            figure = "diverged" if score is None else f"{score:.4f}"
            narrator.say(f"  {member.architecture.key:30}  {figure}  loss {member.loss:.4g}")

    @contextmanager
    def _extracted(self, members: Sequence[Member]) -> Iterator[list[Path]]:
        """Folders of members as models of their own, for a while."""
        processes, scratch = self._run.processes, self._run.folder / FOLDER / "students"
        folders = [scratch / f"{member.space}-{member.architecture.key}" for member in members]
        if processes.is_main_process:
            for member, folder in zip(members, folders, strict=True):
                self._run.extract(member, folder)
        processes.wait_for_everyone()
        try:
            yield folders
            processes.wait_for_everyone()
        finally:
            if processes.is_main_process:
                shutil.rmtree(scratch)


@contextmanager
def _named() -> Iterator[None]:
    """Name the evaluation's settings as they are called here."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(
            _NAMES.get(error.field, error.field), error.given, error.allowed, error.remedy
        ) from error
