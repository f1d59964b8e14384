"""The report's page."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hf_kdnas.errors import InvalidInput
from hf_kdnas.report import render_report
from hf_kdnas.report.plots import Point, course_plot, pareto_plot
from hf_kdnas.report.render import report_html
from hf_kdnas.report.view import rows

_VOID = {"meta", "br", "link", "img"}


class _Page(HTMLParser):
    """Text, ids and references of a page whose elements must be nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("src", "href", "xlink:href"):
                self.references.append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_one_file_with_everything_in_it(tmp_path: Path, results: dict[str, Any]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    path = render_report(tmp_path)
    assert path == tmp_path / "report.html"
    page = _Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    for text in (
        "keeps 98.0 % of its teacher's accuracy at 2.82 times its speed",
        "5.39 ms",
        "22.7 M",
        "every-second-layer",
        "nothing is known about what distillation was worth",
        "A Processor @ 2.10GHz",
        "1 thread, batch 1, 128 tokens",
        "nothing is known about what the search itself was worth",
        "12 min 54 s",
        "rotten_tomatoes",
        "What the controller expected of 8 candidates",
    ):
        assert text in page.text


def test_the_page_needs_no_network_and_its_ids_are_its_own(results: dict[str, Any]) -> None:
    html = report_html(results)
    page = _Page(html)
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert page.ids.most_common(1)[0][1] == 1
    assert {reference[1:] for reference in page.references} <= set(page.ids)


def test_the_same_results_give_the_same_page(results: dict[str, Any]) -> None:
    assert report_html(results) == report_html(json.loads(json.dumps(results)))


def test_texts_of_the_user_stay_texts(results: dict[str, Any]) -> None:
    results["name"] = "<script>alert(1)</script>"
    results["recipe"] = "name: '</pre><script>'"
    results["baselines"][0]["name"] = r"$\frac{<b>&$"
    results["task"]["metric"] = "<i>score</i>"
    html = report_html(results)
    assert "<script" not in html
    assert "<i>score" not in html
    assert r"$\frac{<b>&$" in _Page(html).text


def test_a_database_is_named_without_its_password(results: dict[str, Any]) -> None:
    results["recipe"] = "search: {storage: postgresql://ada:secret@host/studies}"
    html = report_html(results)
    assert "postgresql://host/studies" in html
    assert "secret" not in html


def test_what_may_be_missing_is(results: dict[str, Any]) -> None:
    results["student"]["int8"] = None
    results["baselines"] = []
    results["constraints"] = dict.fromkeys(results["constraints"])
    for candidate in results["candidates"]:
        candidate["predicted_reward"] = None
    page = _Page(report_html(results))
    assert "No reward was predicted" in page.text
    assert "INT8" not in page.text
    assert "constraints" not in page.text.split("Quality against latency")[0]


def test_unmet_constraints_are_a_warning(results: dict[str, Any]) -> None:
    assert '<p class="warning">' not in report_html(results)
    results["constraints_met"] = False
    assert '<p class="warning">No finalist met' in report_html(results)


def test_a_run_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no results\.json"):
        render_report(tmp_path)


def test_the_plot_shows_every_model(results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_kdnas.report import plots

    drawn: dict[str, list[Point]] = {}
    scatter = plots._scatter

    def recorded(axes: Any, points: list[Point], mark: Any, label: str) -> None:
        drawn[label] = list(points)
        scatter(axes, points, mark, label)

    monkeypatch.setattr(plots, "_scatter", recorded)
    svg = pareto_plot(results, rows(results))
    # The pruned one has no quality; one of 0.67 would press the others into a corner.
    assert len(drawn["candidates, trained for a short time"]) == 11
    (below,) = drawn["candidates below the picture"]
    assert 0.67 < below.y == pytest.approx(0.85 * 0.8342)
    assert len(drawn["hand-crafted"]) == 2
    (winner,) = drawn["winner"]
    # Not its own milliseconds, which come from another moment of the machine.
    assert winner.x == pytest.approx(15.2 / results["finalists"][0]["speedup"])
    assert winner.label == "4L-256H-1024F-8A"
    assert ">every-second-layer<" in svg
    assert not re.search(r'^<svg [^>]*\b(width|height)="', svg)
    assert 'viewBox="0 0 338' in svg


def test_the_course_shows_trained_candidates_in_order(results: dict[str, Any]) -> None:
    svg = course_plot(results)
    assert svg is not None
    assert ">best so far<" in svg
    assert ">later the winner<" in svg
    for candidate in results["candidates"]:
        candidate["reward"] = None
    assert course_plot(results) is None
    assert "No candidate was trained" in _Page(report_html(results)).text


def test_a_label_that_touches_others_or_leaves_the_frame_costs() -> None:
    from matplotlib.transforms import Bbox

    from hf_kdnas.report.plots import _cost

    frame, label = Bbox.from_extents(0, 0, 100, 100), Bbox.from_extents(10, 10, 40, 20)
    near, far = Bbox.from_extents(35, 15, 45, 25), Bbox.from_extents(60, 60, 70, 70)
    assert _cost(label, [], [far], frame) == 0
    assert _cost(label, [near], [near, far], frame) == 2
    assert _cost(Bbox.from_extents(-5, 10, 25, 20), [], [far], frame) == 2


def test_models_on_one_spot_are_all_named(results: dict[str, Any]) -> None:
    for model in results["baselines"]:
        model |= {"quality": 0.8, "speedup": 4.0}
    svg = pareto_plot(results, rows(results))
    places = re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>(?:every-second-layer|tinybert)<', svg)
    assert len(set(places)) == 2
