"""A search in the user's experiment trackers, as Trainer's `report_to` does it for training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers, get_available_trackers
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hf_kdnas.errors import InvalidInput, MissingPackage
from hf_kdnas.recipe_files import nearest

if TYPE_CHECKING:
    from hf_kdnas.search.study import Candidate

# What `pip install` calls trackers whose package has another name.
_INSTALL = {"comet_ml": "comet-ml"}


def check_trackers(names: Sequence[str]) -> None:
    """See that trackers are known to Accelerate and Trainer, and installed: Accelerate leaves out what isn't.

    Raises:
        InvalidInput: If one is unknown.
        MissingPackage: If one is not installed.
    """
    known = sorted(INTEGRATION_TO_CALLBACK.keys() & {str(name) for name in LOGGER_TYPE_TO_CLASS})
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in ("none", "all", *known):
            raise InvalidInput(
                "report_to", name, f"trackers are none, all, {', '.join(known)}", nearest(name, known)
            )
        if name in known and name not in installed:
            raise MissingPackage(name, "for report_to", _INSTALL.get(name, name))


class Trackers:
    """Logs each candidate to the trackers of `report_to`; only the main process writes.

    Args:
        report_to: Names of trackers that Accelerate knows, `all`, or `none`.
        run_name: Names the search in them.
        folder: Where those that write files put them.
    """

    def __init__(self, report_to: Sequence[str], run_name: str, folder: Path) -> None:
        self._names = [] if "none" in report_to else filter_trackers(list(report_to), str(folder))
        self._run_name = run_name
        self._folder = folder
        self._trackers: list[Any] = []
        self._started = ExitStack()

    def __enter__(self) -> Trackers:
        with ExitStack() as started:  # finishes those that did start, where one can't
            # Some would begin a run on every process.
            for name in self._names if PartialState().is_main_process else []:
                kind = LOGGER_TYPE_TO_CLASS[str(name)]
                arguments = [str(self._folder)] if kind.requires_logging_directory else []
                tracker = kind(self._run_name, *arguments)
                tracker.start()
                started.callback(tracker.finish)
                self._trackers.append(tracker)
            self._started = started.pop_all()
        return self

    def log(self, candidate: Candidate) -> None:
        """Log what a candidate reached; one that was not trained has a latency alone."""
        reached = {
            "search/quality": candidate.quality,
            "search/latency_ms": candidate.latency_ms,
            "search/reward": candidate.reward,
            "search/episode": candidate.episode,
        }
        values = {name: value for name, value in reached.items() if value is not None}
        for tracker in self._trackers:
            tracker.log(values, step=candidate.number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started.close()
