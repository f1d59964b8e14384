"""What `results.json` holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hf_kdnas.architecture import Architecture
from hf_kdnas.results import Findings, _rank_correlation
from hf_kdnas.run import read_json
from hf_kdnas.search.students import Student
from hf_kdnas.search.study import Candidate
from hf_kdnas.space import SearchSpace


def _found(proxies: Sequence[float], qualities: Sequence[float]) -> Findings:
    """Finalists by their quality after the short distillation and after the full one."""
    shapes = [Architecture(layers, 32, 4, 64) for layers in range(1, len(proxies) + 1)]
    candidates = [
        Candidate(number, 0, shape, proxy, 1.0, 0.5, proxy, None, "complete")
        for number, (shape, proxy) in enumerate(zip(shapes, proxies, strict=True))
    ]
    finalists = [
        Student(shape.key, shape, quality, quality, 1.0, 0.5, 1000, quality)
        for shape, quality in zip(shapes, qualities, strict=True)
    ]
    space = SearchSpace.from_teacher(shapes[-1])
    # They belong together by shape, not by place.
    return Findings(space, finalists, finalists[0], met=True, candidates=candidates[::-1])


def test_how_well_short_distillations_ranked_the_finalists() -> None:
    assert _rank_correlation(_found([0.1, 0.2, 0.3], [0.5, 0.7, 0.6])) == pytest.approx(0.5)


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize(
    ("proxies", "qualities"), [([0.1, 0.2], [0.5, 0.7]), ([0.1, 0.1, 0.1], [0.5, 0.7, 0.6])]
)
def test_two_finalists_or_equal_ones_have_no_ranks(proxies: list[float], qualities: list[float]) -> None:
    assert _rank_correlation(_found(proxies, qualities)) is None


def _keys(value: Any) -> Any:
    """The keys of nested objects."""
    return {name: _keys(each) for name, each in value.items()} if isinstance(value, dict) else None


def test_the_made_up_results_are_as_those_of_a_run(tiny_run: Path) -> None:
    """Reports, cards and the gallery are tested with them."""
    real = read_json(tiny_run / "results.json")
    made_up = json.loads((Path(__file__).parent / "report" / "results.json").read_text(encoding="utf-8"))
    assert made_up.keys() == real.keys()
    for results in (made_up, real):
        results["teacher"].pop("license")  # not known of every teacher
    for name in ("task", "teacher", "student", "space", "constraints", "search", "distillation"):
        assert _keys(made_up[name]) == _keys(real[name]), name
    assert made_up["latency_target"].keys() == real["latency_target"].keys()
    assert made_up["finalists"][0].keys() == real["finalists"][0].keys()
    [report] = made_up["latency_reports"].values()
    assert _keys(report) == _keys(real["student"]["latency"])
    for each in made_up["candidates"]:
        assert each.keys() == {field.name for field in fields(Candidate)}
