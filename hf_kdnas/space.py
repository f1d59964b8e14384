"""Search spaces: the legal architectures among the combinations of a few values per dimension."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution

DIMENSIONS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")

Constraint = Callable[[Architecture], bool]


def stock_config_holds(architecture: Architecture) -> bool:
    """Whether a stock config can hold the shape: it fixes head size = hidden size / heads."""
    return architecture.head_size is None


class SearchSpace:
    """The architectures that a search may choose from.

    A space is a product of values per dimension, less the members that a constraint refuses. It
    behaves as an immutable, ordered collection: `len`, iteration in sorted order, `in`.

    Args:
        dimensions: Allowed values of each Architecture field, in the order of DIMENSIONS.
        constraints: Named predicates; a member must satisfy all.
        ratio: Read `intermediate_size` as multiples of the hidden size (AutoDistil's MLP ratio).
        head_size: Units per head where it doesn't follow from hidden size and heads (AutoDistil's
            heads keep their teacher's size); members that a stock config can hold as well are
            written the stock way.

    Raises:
        InvalidInput: If a dimension is unknown or empty, or no member satisfies a constraint (the
            message names which).
    """

    def __init__(
        self,
        dimensions: Mapping[str, Sequence[Any]],
        constraints: Mapping[str, Constraint] | None = None,
        *,
        ratio: bool = False,
        head_size: int | None = None,
    ) -> None:
        for name in dimensions:
            if name not in DIMENSIONS:
                raise InvalidInput(
                    "space", name, f"dimensions are {', '.join(DIMENSIONS)}", "Remove or rename it."
                )
        for name in DIMENSIONS:
            if not dimensions.get(name):
                raise InvalidInput(
                    f"space.{name}", list(dimensions.get(name, ())), "needs at least one value", "Add one."
                )
        self.dimensions: dict[str, tuple[Any, ...]] = {name: tuple(dimensions[name]) for name in DIMENSIONS}
        self.constraints: dict[str, Constraint] = dict(constraints or {})
        self._ratio = ratio
        self._head_size = head_size
        self._check_not_empty()

    @cached_property
    def members(self) -> tuple[Architecture, ...]:
        """All legal members, sorted."""
        return tuple(sorted(filter(self._allowed, self._shapes())))

    def _shapes(self) -> Iterator[Architecture]:
        for values in itertools.product(*self.dimensions.values()):
            shape = self._shape(dict(zip(DIMENSIONS, values, strict=True)))
            if shape is not None:
                yield shape

    def _shape(self, values: Mapping[str, Any]) -> Architecture | None:
        """The architecture of a choice of values, or None where heads don't divide the width."""
        fields = dict(values)
        if self._ratio:
            fields["intermediate_size"] = int(fields["hidden_size"] * fields["intermediate_size"])
        if fields["hidden_size"] % fields["num_attention_heads"]:
            if self._head_size is None:
                return None
            fields["head_size"] = self._head_size
        return Architecture(**fields)

    def _allowed(self, architecture: Architecture) -> bool:
        return all(constraint(architecture) for constraint in self.constraints.values())

    def _check_not_empty(self) -> None:
        """Apply the constraints one after another, so that the one that empties the space is known."""
        remaining = list(self._shapes())
        if not remaining:
            raise InvalidInput(
                "space.num_attention_heads",
                list(self.dimensions["num_attention_heads"]),
                f"some must divide a hidden size out of {list(self.dimensions['hidden_size'])}",
                "Add head counts that divide the hidden sizes.",
            )
        for name, constraint in self.constraints.items():
            fitting = [member for member in remaining if constraint(member)]
            if not fitting:
                raise InvalidInput(
                    "space",
                    name,
                    f"none of the {len(remaining)} architectures that are left satisfies this constraint",
                    f"Loosen {name}, or add smaller values to the dimensions.",
                )
            remaining = fitting

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Architecture]:
        return iter(self.members)

    def __contains__(self, architecture: object) -> bool:
        return architecture in self._member_set

    @cached_property
    def _member_set(self) -> frozenset[Architecture]:
        return frozenset(self.members)

    def sample(self, rng: random.Random) -> Architecture:
        """A member drawn uniformly."""
        return rng.choice(self.members)

    def neighbours(self, architecture: Architecture) -> list[Architecture]:
        """Legal members one step away: one dimension moved to the next or previous value."""
        values = self.values_of(architecture)
        found = []
        for name, allowed in self.dimensions.items():
            position = allowed.index(values[name])
            for step in (position - 1, position + 1):
                if 0 <= step < len(allowed):
                    shape = self._shape({**values, name: allowed[step]})
                    if shape is not None and shape in self:
                        found.append(shape)
        return sorted(found)

    def values_of(self, architecture: Architecture) -> dict[str, Any]:
        """The choice of values, by dimension, that gives a member.

        Raises:
            InvalidInput: If the architecture is not a member.
        """
        if architecture not in self:
            raise InvalidInput(
                "architecture", architecture.key, "must be a member of the search space", "Choose a member."
            )
        values = {name: getattr(architecture, name) for name in DIMENSIONS}
        if self._ratio:
            values["intermediate_size"] = architecture.intermediate_size / architecture.hidden_size
        return values

    def architecture(self, values: Mapping[str, Any]) -> Architecture | None:
        """The member that a choice of values gives, or None if that combination is not legal."""
        shape = self._shape(values)
        return shape if shape is not None and shape in self else None

    def distributions(self) -> dict[str, CategoricalDistribution]:
        """Optuna's distributions of the dimensions; not every combination is legal."""
        from optuna.distributions import CategoricalDistribution

        return {name: CategoricalDistribution(values) for name, values in self.dimensions.items()}

    def changed(
        self, dimensions: Mapping[str, Sequence[Any]], constraints: Mapping[str, Constraint]
    ) -> SearchSpace:
        """The same space with other values on some dimensions, and these constraints alone.

        Raises:
            InvalidInput: If no member is left.
        """
        merged = {**self.dimensions, **dimensions}
        absolute = "intermediate_size" in dimensions
        return SearchSpace(merged, constraints, ratio=self._ratio and not absolute, head_size=self._head_size)

    def restricted(self, constraints: Mapping[str, Constraint]) -> SearchSpace:
        """The same space under further constraints.

        Raises:
            InvalidInput: If no member is left.
        """
        return self.changed({}, {**self.constraints, **constraints})

    def native(self) -> SearchSpace:
        """The members that a stock config can hold."""
        return self.restricted({"a stock config": stock_config_holds})

    @classmethod
    def from_teacher(cls, teacher: Architecture) -> SearchSpace:
        """Students that can be cut from a teacher and held by a stock config.

        Depth from one layer to the teacher's; widths in steps of a twelfth of the teacher's from a
        quarter on; intermediate sizes at fractions of the teacher's; heads of half, the same or
        twice the teacher's head size.
        """
        hidden, heads, ffn = teacher.hidden_size, teacher.num_attention_heads, teacher.intermediate_size
        unit = teacher.attention_head_size
        return cls(
            {
                "num_hidden_layers": range(1, teacher.num_hidden_layers + 1),
                "hidden_size": _distinct(_to_multiple(hidden * part / 12) for part in range(3, 13)),
                "num_attention_heads": range(1, heads + 1),
                "intermediate_size": _distinct(ffn * part // 16 for part in (2, 3, 4, 6, 8, 12, 16)),
                "hidden_act": [teacher.hidden_act],
            },
            {
                "cut from the teacher": lambda member: member.fits_into(teacher),
                "head size": lambda member: member.attention_head_size in (unit // 2, unit, 2 * unit),
            },
        )

    @classmethod
    def preset(cls, name: str, teacher: Architecture | None = None) -> SearchSpace:
        """A space by name: `kd_nas`, `autodistil-tiny|small|base`, or `from_teacher`.

        Raises:
            InvalidInput: If the name is unknown.
        """
        if name == "from_teacher" and teacher is not None:
            return cls.from_teacher(teacher)
        if name not in _PRESETS:
            raise InvalidInput(
                "space.preset",
                name,
                f"presets are {', '.join(sorted([*_PRESETS, 'from_teacher']))}",
                "Choose one of these, or list the dimensions.",
            )
        return cls(**_PRESETS[name])


def _to_multiple(size: float, of: int = 8) -> int:
    return max(of, round(size / of) * of)


def _distinct(values: Iterator[int]) -> list[int]:
    return sorted({value for value in values if value > 0})


# KD-NAS, arXiv 2303.09639; hidden size 576 is there because the published winner has it.
_KD_NAS: dict[str, Any] = {
    "dimensions": {
        "num_hidden_layers": (3, 4, 6, 10, 12),
        "hidden_size": (384, 576, 768),
        "num_attention_heads": (2, 3, 4, 6, 12),
        "intermediate_size": (384, 512, 576, 768, 1024, 1536, 2048, 3072),
        "hidden_act": ("gelu", "relu", "silu"),
    }
}


def _autodistil(
    layers: Sequence[int], hidden: Sequence[int], ratios: Sequence[float], heads: Sequence[int]
) -> dict[str, Any]:
    """One of AutoDistil's sub-spaces (arXiv 2201.12507, table 1); heads keep BERT's 64 units."""
    dimensions = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": ratios,
        "hidden_act": ("gelu",),
    }
    return {"dimensions": dimensions, "ratio": True, "head_size": 64}


_PRESETS: dict[str, dict[str, Any]] = {
    "kd_nas": _KD_NAS,
    "autodistil-tiny": _autodistil(range(4, 8), range(128, 225, 32), (2.0, 2.5, 3.0, 3.5), range(7, 11)),
    "autodistil-small": _autodistil(range(9, 13), range(256, 353, 32), (2.5, 3.0, 3.5, 4.0), range(7, 11)),
    "autodistil-base": _autodistil(range(9, 13), range(544, 641, 32), (2.5, 3.0, 3.5, 4.0), range(9, 13)),
}
