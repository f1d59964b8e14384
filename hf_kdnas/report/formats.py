"""Numbers as a reader wants them, for the report and the model card; a value of None is a dash."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeAlias

NOTHING = "–"  # noqa: RUF001 - an en dash, as tables have it

_SPACE = "\N{NO-BREAK SPACE}"  # keeps a number and its unit on one line

Format: TypeAlias = Callable[[float | None], str]


def _or_dash(text: Callable[[float], str]) -> Format:
    @wraps(text)
    def formatted(value: float | None) -> str:
        return NOTHING if value is None or value != value else text(value)

    return formatted


@_or_dash
def score(value: float) -> str:
    """A metric or a reward: `0.8342`."""
    return f"{value:.4f}"


@_or_dash
def percent(value: float) -> str:
    """A fraction: `97.4 %`."""
    return f"{100 * value:.1f}{_SPACE}%"


@_or_dash
def milliseconds(value: float) -> str:
    """Milliseconds, to three digits or so: `3.91 ms`, `0.083 ms`."""
    digits = 3 if value < 1 else 2 if value < 100 else 0
    return f"{value:.{digits}f}{_SPACE}ms"


@_or_dash
def times(value: float) -> str:
    """A ratio: `3.91 x`, with a multiplication sign."""
    return f"{value:.2f}{_SPACE}×"  # noqa: RUF001 - the sign is meant


@_or_dash
def count(value: float) -> str:
    """A large number: `22.7 M`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{_SPACE}{unit}"
    return f"{value:.0f}"


@_or_dash
def duration(value: float) -> str:
    """Seconds: `1 h 05 min`, `12 min 05 s`, `4.2 s`."""
    if value < 60:
        return f"{value:.1f}{_SPACE}s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{_SPACE}min {seconds:02}{_SPACE}s"
    return f"{minutes // 60}{_SPACE}h {minutes % 60:02}{_SPACE}min"


FORMATS: dict[str, Format] = {
    each.__name__: each for each in (score, percent, milliseconds, times, count, duration)
}
