"""Search spaces: the legal architectures among the combinations of a few values per dimension."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution
    from transformers import PretrainedConfig

DIMENSIONS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")

Constraint = Callable[[Architecture], bool]


class SearchSpace:
    """The architectures that a search may choose from.

    A space is a product of values per dimension, less the members that a constraint refuses. It
    behaves as an immutable, ordered collection: `len`, iteration in sorted order, `in`.

    Args:
        dimensions: Allowed values of each Architecture field, in the order of DIMENSIONS.
        constraints: Named predicates; a member must satisfy all.
        ratio: Read `intermediate_size` as multiples of the hidden size (AutoDistil's MLP ratio).
        head_size: Units of every head (AutoDistil's keep their teacher's size); None where they follow from
            hidden size and heads, as in a stock config. Members that it can hold are written the stock way.

    Attributes:
        members: All legal members, sorted.

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
        self.dimensions: dict[str, tuple[Any, ...]] = {
            name: tuple(dict.fromkeys(dimensions[name])) for name in DIMENSIONS
        }
        self.constraints: dict[str, Constraint] = dict(constraints or {})
        self._ratio = ratio
        self._head_size = head_size
        self.members: tuple[Architecture, ...] = tuple(sorted(self._legal()))

    def _shapes(self) -> Iterator[Architecture]:
        for values in itertools.product(*self.dimensions.values()):
            shape = self._shape(dict(zip(DIMENSIONS, values, strict=True)))
            if shape is not None:
                yield shape

    def _shape(self, values: Mapping[str, Any]) -> Architecture | None:
        """The architecture of a choice of values, or None where heads don't divide the width they share."""
        fields = dict(values)
        if self._ratio:
            fields["intermediate_size"] = int(fields["hidden_size"] * fields["intermediate_size"])
        hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
        if self._head_size is None and hidden % heads:
            return None
        head_size = None if self._head_size == hidden / heads else self._head_size
        return Architecture(**fields, head_size=head_size)

    def _legal(self) -> list[Architecture]:
        """The members, by one constraint after another, so that the one that empties the space is known."""
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
        return remaining

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Architecture]:
        return iter(self.members)

    def __contains__(self, architecture: object) -> bool:
        return architecture in self._member_set

    @cached_property
    def _member_set(self) -> frozenset[Architecture]:
        return frozenset(self.members)

    @property
    def widest(self) -> Architecture:
        """The envelope of the members, as a rule none of them itself.

        The most layers and the greatest hidden and intermediate size of all, and the most heads: of all
        members where heads have a size of their own, else of those of that hidden size. Every member of a
        preset can be cut from it.
        """
        hidden = max(member.hidden_size for member in self.members)
        alike = [member for member in self.members if self._head_size or member.hidden_size == hidden]
        heads = max(member.num_attention_heads for member in alike)
        return replace(
            alike[0],
            num_hidden_layers=max(member.num_hidden_layers for member in self.members),
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=max(member.intermediate_size for member in self.members),
            head_size=None if self._head_size == hidden / heads else self._head_size,
        )

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
            values["intermediate_size"] = next(
                ratio
                for ratio in self.dimensions["intermediate_size"]
                if int(architecture.hidden_size * ratio) == architecture.intermediate_size
            )
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
        """The same space for a stock config: its heads share the hidden size, and have to divide it."""
        return SearchSpace(self.dimensions, self.constraints, ratio=self._ratio)

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


# AutoDistil's sub-spaces have so many values on every dimension (arXiv 2201.12507, table 1).
_VALUES = 4


def partition(teacher: PretrainedConfig | Architecture, k: int = 3) -> list[SearchSpace]:
    """Compact sub-spaces cut from a teacher, small to large: AutoDistil's, for the teacher's own sizes.

    Each has at most 4 values a dimension, all for a stock config of the teacher's family, and widths above
    those of the one before, from about a sixth of the teacher's width to its own. A member's heads are the
    first of the teacher's, so its width says how many; where a sub-space would have fewer than 3 widths,
    heads of half the size give it those in between. As in the paper, the smallest of several sub-spaces
    begins at a third of the teacher's layers and stays below its MLP ratio, the others end at both.

    Args:
        teacher: Config, or shape, of the teacher.
        k: Number of sub-spaces, each with a SuperLM of its own.

    Raises:
        InvalidInput: If the teacher has no k widths of whole heads.

    Source: arXiv 2201.12507, table 1.
    """
    shape = teacher if isinstance(teacher, Architecture) else Architecture.from_config(teacher)
    unit, most = shape.attention_head_size, min(shape.hidden_size, shape.attention_size)
    whole = [
        width
        for width in range(unit, most + 1, unit)
        if 6 * width >= shape.hidden_size and _family_allows(teacher, width)
    ]
    if not 1 <= k <= len(whole):
        raise InvalidInput(
            "k",
            k,
            f"a teacher of {shape.key} has 1 to {len(whole)} sub-spaces, each with a width of whole heads",
            f"Ask for {len(whole)} at most.",
        )
    bands = [whole[len(whole) * part // k : len(whole) * (part + 1) // k] for part in range(k)]
    spaces = []
    for band in bands:
        halves = [width - unit // 2 for width in band] if len(band) < 3 and unit % 2 == 0 else []
        widths = sorted([*band, *(width for width in halves if _family_allows(teacher, width))])
        spaces.append(_sub_space(shape, _spread(widths), smallest=k > 1 and band is bands[0]))
    return spaces


def _family_allows(teacher: PretrainedConfig | Architecture, width: int) -> bool:
    return isinstance(teacher, Architecture) or get_family(teacher).allows_width(teacher, width)


def _sub_space(teacher: Architecture, widths: Sequence[int], *, smallest: bool) -> SearchSpace:
    """A sub-space with these widths."""
    unit = teacher.attention_head_size

    def head_size(width: int) -> int:
        return unit // 2 if width % unit else unit

    return SearchSpace(
        {
            "num_hidden_layers": _depths(teacher.num_hidden_layers, smallest=smallest),
            "hidden_size": widths,
            "num_attention_heads": sorted({width // head_size(width) for width in widths}),
            "intermediate_size": _ratios(teacher, math.gcd(*widths), smallest=smallest),
            "hidden_act": [teacher.hidden_act],
        },
        {
            "cut from the teacher": lambda member: member.fits_into(teacher),
            "heads of the teacher": lambda member: (
                member.attention_head_size == head_size(member.hidden_size)
            ),
        },
        ratio=True,
    )


def _depths(layers: int, *, smallest: bool) -> list[int]:
    """Of 12 layers 4 to 7 for the smallest sub-space, and 9 to 12 for others."""
    step = max(1, layers // 12)
    first = max(1, layers // 3 if smallest else layers - (_VALUES - 1) * step)
    return [depth for depth in range(first, first + _VALUES * step, step) if depth <= layers]


def _ratios(teacher: Architecture, common: int, *, smallest: bool) -> list[float]:
    """Of a ratio of 4, 2.0 to 3.5 for the smallest sub-space, and 2.5 to 4.0 for others.

    Steps are powers of two, so that products with the widths, multiples of `common`, are whole.
    """
    ratio = teacher.intermediate_size / teacher.hidden_size
    step = max(2.0 ** math.ceil(math.log2(ratio / 8)), 1 / (common & -common))
    last = max(1, int(ratio / step) - smallest)
    return [count * step for count in range(max(1, last - _VALUES + 1), last + 1)]


def _spread(values: Sequence[int]) -> list[int]:
    """At most 4 of the values, evenly, the first and the last among them."""
    count = min(len(values), _VALUES)
    return [values[round(place * (len(values) - 1) / max(1, count - 1))] for place in range(count)]


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
