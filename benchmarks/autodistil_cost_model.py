"""The cost model behind AutoDistil's tables, its printed figures, and the tensors of real models.

The paper (arXiv 2201.12507) counts with an attention as wide as the hidden size times heads / 12, its models
have heads of 64 units, and a stock model's attention is as wide as its hidden size: beside each printed shape
stands the member nearest to it, in steps of its sub-space, that a stock config can hold, counted from its
tensors. FLOPs are multiply-adds of one text of 128 tokens.

Takes seconds; `--quick` changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from harness import Benchmark, arguments
from transformers import BertConfig, BertModel

from hf_kdnas import Architecture, SearchSpace
from hf_kdnas.architecture import autodistil_flops, autodistil_parameters
from hf_kdnas.slicing import parameter_counter

LENGTH = 128

# Sub-space, shape, parameters in millions, GFLOPs, as printed.
WINNERS = {
    "ProxyB": ("base", "12L-544H-1632F-9A-64D-gelu", "50.1", "4.40"),
    "ProxyS": ("small", "11L-352H-1408F-8A-64D-gelu", "26.1", "2.02"),
    "Agnostic": ("small", "11L-352H-1408F-10A-64D-gelu", "26.8", "2.13"),
    "ProxyT": ("tiny", "7L-160H-560F-10A-64D-gelu", "6.88", "0.27"),
}
BERT_BASE = ("12L-768H-3072F-12A-gelu", "109", "11.2")
# Parameters in millions, from and to, and GFLOPs, as printed.
SPACES = {
    "tiny": (("4", "10"), "0.04-0.367"),
    "small": (("12", "28"), "0.5-2.1"),
    "base": (("39", "79"), "2.1-7.9"),
}
NOTES = {
    "ProxyT": "the paper cuts some figures (6.888 to 6.88, ranges) and rounds others (26.77 to 26.8)",
    "tiny space": "the ranges of FLOPs printed for the three spaces do not follow from the formula",
}


def model_cell(key: str, native: Architecture, count: Callable[[Architecture], int]) -> dict[str, Any]:
    """A shape by the formulas, and a stock model by its tensors."""
    shape = Architecture.parse(key)
    return {
        "formula": [autodistil_parameters(shape), autodistil_flops(shape, LENGTH)],
        "native": native.key,
        "tensors": [count(native), native.flops(LENGTH)],
    }


def space_cell(size: str, count: Callable[[Architecture], int]) -> dict[str, Any]:
    """A sub-space by the formulas, and the members that a stock config can hold by their tensors."""
    space = SearchSpace.preset(f"autodistil-{size}")
    native = space.native()
    return {
        "members": len(space),
        "formula": [
            extremes(map(autodistil_parameters, space)),
            extremes(autodistil_flops(member, LENGTH) for member in space),
        ],
        "native": f"{len(native)} members",
        "tensors": [extremes(map(count, native)), extremes(member.flops(LENGTH) for member in native)],
    }


def extremes(values: Iterable[float]) -> list[float]:
    """Least and most."""
    found = list(values)
    return [min(found), max(found)]


def nearest(space: SearchSpace, shape: Architecture) -> Architecture:
    """The member that a stock config can hold with the fewest steps between its values and the shape's."""
    wanted, native = space.values_of(shape), space.native()

    def distance(member: Architecture) -> tuple[int, float]:
        values = native.values_of(member)
        steps = sum(
            abs(allowed.index(values[name]) - allowed.index(wanted[name]))
            for name, allowed in space.dimensions.items()
        )
        return steps, abs(autodistil_parameters(member) - autodistil_parameters(shape))

    return min(native, key=distance)


def printed_as(value: float, printed: str) -> bool:
    """Whether a figure is the printed one: some are rounded (26.77 to 26.8), others cut (6.888 to 6.88)."""
    digits = len(printed.partition(".")[2])
    cut = math.floor(value * 10**digits) / 10**digits
    return printed in (f"{value:.{digits}f}", f"{cut:.{digits}f}")


def row(name: str, printed: Sequence[str], cell: Mapping[str, Any]) -> list[str]:
    """A line of the table: printed figures beside the formula's, and those of a stock model."""
    scales = (1e6, 1e9)
    formula, tensors = (
        [figure(value, scale) for value, scale in zip(cell[source], scales, strict=True)]
        for source in ("formula", "tensors")
    )
    return [name, printed[0], formula[0], printed[1], formula[1], cell["native"], *tensors]


def figure(value: float | Sequence[float], scale: float) -> str:
    """A figure, or a range, to 3 digits."""
    values = value if isinstance(value, Sequence) else [value]
    return "-".join(f"{each / scale:#.3g}".rstrip(".") for each in values)


def models_to_count() -> dict[str, tuple[str, Architecture, str, str]]:
    """Key, nearest stock shape and printed figures of the winners and of BERT-base."""
    found = {
        name: (key, nearest(SearchSpace.preset(f"autodistil-{size}"), Architecture.parse(key)), *printed)
        for name, (size, key, *printed) in WINNERS.items()
    }
    return {**found, "BERT-base": (BERT_BASE[0], Architecture.parse(BERT_BASE[0]), *BERT_BASE[1:])}


def noted(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A cell with its note."""
    return measure() | ({"note": NOTES[name]} if name in NOTES else {})


def main() -> None:
    """Compute what is missing, and print the table and the targets."""
    options = arguments(__doc__ or "")
    benchmark = Benchmark("autodistil_cost_model", options.cells)
    count = parameter_counter(BertModel, BertConfig())
    rows = []
    for name, (key, native, *printed) in models_to_count().items():
        cell = benchmark.cell(name, partial(noted, name, partial(model_cell, key, native, count)))
        if cell:
            for what, value, unit, wanted in zip(
                ("parameters", "FLOPs"),
                (cell["formula"][0] / 1e6, cell["formula"][1] / 1e9),
                "MG",
                printed,
                strict=True,
            ):
                benchmark.target(
                    printed_as(value, wanted),
                    f"{what} of {name} by the formula",
                    f"{value:.3f} {unit}",
                    f"{wanted} {unit}",
                )
            rows.append(row(f"{name}, {key}", printed, cell))
    for size, (parameters, flops) in SPACES.items():
        name = f"{size} space"
        cell = benchmark.cell(name, partial(noted, name, partial(space_cell, size, count)))
        if cell:
            millions = [value / 1e6 for value in cell["formula"][0]]
            benchmark.target(
                all(map(printed_as, millions, parameters)),
                f"parameters of the {name} by the formula",
                f"{millions[0]:.3f} to {millions[1]:.3f} M",
                f"{parameters[0]} to {parameters[1]} M",
            )
            printed = ("-".join(parameters), flops)
            rows.append(row(f"{name}, {cell['members']} members", printed, cell))
    benchmark.finish(
        (
            "shape",
            "M parameters, printed",
            "by the formula",
            "GFLOPs, printed",
            "by the formula",
            "stock config",
            "M parameters, tensors",
            "GFLOPs",
        ),
        rows,
    )


if __name__ == "__main__":
    main()
