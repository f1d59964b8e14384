"""What a person sees of a long run: lines and bars, from the main process only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Narrator:
    """Tells how a run goes on.

    On a terminal, loops have a bar with the time left; elsewhere (a log file, CI) they leave a line
    now and then.

    Args:
        speaks: Whether this process is the one that speaks.
    """

    SECONDS_BETWEEN_LINES = 15.0

    def __init__(self, speaks: bool = True) -> None:
        self.speaks = speaks
        self._console = Console(file=sys.stderr, highlight=False)

    def say(self, message: str) -> None:
        """Print a line."""
        if self.speaks:
            self._console.print(message, markup=False, soft_wrap=True)

    @contextmanager
    def loop(self, what: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
        """A bar over `total` units; call what it yields with the units done and a note.

        Args:
            what: Stands before the bar.
            total: Units.
            done: Those that an earlier launch did: they say nothing about the time left.
        """
        if self.speaks and self._console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(what, total=total, completed=done, note="")

                def move(done: int, note: str = "") -> None:
                    bar.update(task, completed=done, note=note)

                yield move
        else:
            yield self._lines(what, total, done)

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
        )

    def _lines(self, what: str, total: int, begun: int) -> Callable[[int, str], None]:
        start = said = time.monotonic()

        def update(done: int, note: str = "") -> None:
            nonlocal said
            now = time.monotonic()
            if done > begun and (now - said > self.SECONDS_BETWEEN_LINES or done == total):
                said = now
                left = (now - start) / (done - begun) * (total - done)
                self.say(f"  {what}: {done} of {total}, {left:.0f} s left  {note}".rstrip())

        return update
