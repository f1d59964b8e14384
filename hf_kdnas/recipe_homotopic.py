"""The part of a recipe that says how students are narrowed, beside `distillation`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from hf_kdnas.errors import InvalidInput
from hf_kdnas.recipe_files import option

# What a look at the discrepancy is logged under, each term with its name behind it.
DISCREPANCY = "discrepancy_"


@dataclass(frozen=True, kw_only=True)
class HomotopicSection:
    """How a student is narrowed while it is distilled; losses and training are `distillation`'s."""

    target: float | str | None = option(
        None,
        "the shape at the end: a key like 6L-192H-768F-12A-gelu, or a part of the teacher's widths like 0.5, "
        "rounded to what a stock config holds; null only where a search finds it (search.finalise)",
        above=0,
        most=1,
    )
    start: float = option(
        0.0, "part of the steps before the first unit is removed (t_i), before `end`", least=0, most=1
    )
    end: float = option(
        0.7, "part of the steps after which the student has its shape (t_f), below 1", above=0, most=1
    )
    compactions: int = option(
        8, "how often units are removed; in between, the student is a stock model of some shape", least=1
    )
    importance: Literal["sensitivity", "taylor", "magnitude", "activation"] = option(
        "sensitivity",
        "what units are scored by: |weight * gradient|, the first-order change of the loss without them, "
        "their weights, or their activations on training rows",
    )
    smoothing: float = option(0.85, "b1, how much of the past a gradient's score keeps", least=0, most=0.999)
    uncertainty: float = option(0.85, "b2 of PLATON's uncertainty; 1 turns it off", least=0, most=1)
    maps: Literal["learned", "kept"] = option(
        "learned",
        "from student to teacher states: linear maps that begin as the identity, or none, each of the "
        "student's units being compared with the teacher's unit that it was",
    )
    held_out: int = option(64, "rows of the selection split that the discrepancy is looked at on", least=1)
    evaluation_steps: int = option(
        100, "steps from one look at the discrepancy to the next; there is one around every cut", least=1
    )
    save_steps: int = option(500, "steps from one checkpoint to the next; every cut is one", least=1)

    def check(self) -> None:
        """See that units can be told from each other.

        Raises:
            InvalidInput: If every score would be 0.
        """
        by_gradients = self.importance in ("sensitivity", "taylor")
        if by_gradients and self.smoothing == 0 and self.uncertainty != 1:
            raise InvalidInput(
                "homotopic.uncertainty",
                self.uncertainty,
                "with smoothing: 0 no step is far from the mean, which is itself: every score would be 0",
                "Set uncertainty: 1, or a smoothing above 0.",
            )

    @property
    def decisive(self) -> dict[str, Any]:
        """What a student follows from, beside its shape: how it is looked at and kept is free to change."""
        free = ("target", "held_out", "evaluation_steps", "save_steps")
        return {name: value for name, value in asdict(self).items() if name not in free}
