"""The weight of an objective. Imports no torch, because recipes are checked with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_kdnas.errors import InvalidInput


@dataclass(frozen=True)
class Weight:
    """An objective's weight, constant or linear over the training.

    Attributes:
        start: At the beginning.
        end: At the end.
    """

    start: float
    end: float

    @classmethod
    def parse(cls, key: str, given: Any) -> Weight:
        """The weight that an objective's options give: a number, or `{from: NUMBER, to: NUMBER}`.

        Args:
            key: Names the setting in messages.
            given: What stands there.

        Raises:
            InvalidInput: If it is neither, below 0, or not finite.
        """
        linear = isinstance(given, Mapping) and set(given) == {"from", "to"}
        values = [given["from"], given["to"]] if linear else [given, given]
        if not all(_is_number(each) and each >= 0 for each in values):
            raise InvalidInput(
                key, given, "must be a finite number of 0 or more, or {from: NUMBER, to: NUMBER}", "Try 1.0."
            )
        return cls(float(values[0]), float(values[1]))

    def at(self, progress: float) -> float:
        """The weight at a part of the training, from 0 to 1."""
        return self.start + (self.end - self.start) * progress


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number; Python counts True among the integers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


OFF = Weight(0.0, 0.0)
