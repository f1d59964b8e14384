"""The report's pictures, as SVG to be put into a page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from hf_kdnas.pareto import pareto_front
from hf_kdnas.recipe_homotopic import DISCREPANCY
from hf_kdnas.report.view import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

# About as wide as a phone in points, so that the text stays readable there.
WIDTH, HEIGHT = 4.7, 4.2  # inches

# Plots reach down to this many times the range of what matters (the models trained in full, or the better
# half of the candidates), and at least by this part of the best: a few hopeless candidates must not press
# all others into a corner.
_DEPTH, _LEAST_DEPTH = 2.5, 0.15

_REACH = 5  # points from the middle of a mark to its edge, more or less

# Where a label may be, in points right of and above its mark: the first that covers nothing is taken.
_PLACES = [
    *((0, 9, "center"), (0, -15, "center"), (9, -3, "left"), (-9, -3, "right")),
    *((7, 8, "left"), (-7, 8, "right"), (7, -14, "left"), (-7, -14, "right")),
    *((0, 22, "center"), (0, -28, "center"), (7, 22, "left"), (-7, 22, "right")),
    *((7, -28, "left"), (-7, -28, "right"), (0, 36, "center"), (0, -42, "center")),
]

# Okabe and Ito's; lines differ as well.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#111827")
_LINES = ("-", "--", "-.", ":")

_SETTINGS: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": "#6b7280",
    "axes.labelcolor": "#374151",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: it can be searched, and is read aloud
    "svg.hashsalt": "hf-kdnas",  # the same results give the same file
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": "#6b7280",
    "ytick.color": "#6b7280",
}


@dataclass(frozen=True)
class _Mark:
    """How a kind of model is drawn: told apart by shape, not by colour alone (Okabe and Ito's)."""

    marker: str
    colour: str
    size: float
    filled: bool = True


_CANDIDATES = _Mark("o", "#9ca3af", 14, filled=False)
_BELOW = _Mark("v", "#9ca3af", 16, filled=False)
_MARKS = {
    "teacher": _Mark("s", "#111827", 60),
    "winner": _Mark("*", "#d55e00", 190),
    "finalist": _Mark("D", "#e69f00", 38),
    "hand-crafted": _Mark("^", "#0072b2", 52),
    "random search": _Mark("P", "#009e73", 58),
}


@dataclass(frozen=True)
class Point:
    """A mark in a plot.

    Attributes:
        x: Its place from left to right.
        y: Its place from below.
        label: Written beside it.
    """

    x: float
    y: float
    label: str = ""


def pareto_plot(results: Mapping[str, Any], models: Sequence[Row]) -> str:
    """Quality against latency: the teacher, all students, and the fronts that they form.

    Candidates show the selection split after the short distillation, the others the reporting split
    after the full one. A latency here is the teacher's over the speed-up, so that a noisy machine cancels.

    Args:
        results: results.json.
        models: Those trained in full.

    Returns:
        An SVG element.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure = _pareto_figure(results, models)
        return _svg(figure, "pareto", "Quality against latency of the teacher and all students")


def pareto_picture(results: Mapping[str, Any], models: Sequence[Row]) -> bytes:
    """The same as a PNG, for pages that show no SVG."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        # Without metadata the same results give the same file.
        _pareto_figure(results, models).savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def _pareto_figure(results: Mapping[str, Any], models: Sequence[Row]) -> Figure:
    teacher_ms = results["teacher"]["latency_ms"]
    figure, axes = _figure()
    candidates = [
        Point(teacher_ms * each["ratio"], each["quality"])
        for each in results["candidates"]
        if each["quality"] is not None
    ]
    floor = _floor([each.quality for each in models])
    _scatter_down_to(floor, axes, candidates, "candidates, trained for a short time")
    _draw_front(axes, [point for point in candidates if point.y >= floor], _CANDIDATES.colour, ":")
    labelled: list[Point] = []
    for role, mark in _MARKS.items():
        points = [
            Point(teacher_ms / each.speedup, each.quality, _label(each))
            for each in models
            if each.role == role
        ]
        _scatter(axes, points, mark, role)
        labelled += points
    _draw_front(axes, labelled, "#374151", "-")
    _latency_axis(axes, [point.x for point in (*candidates, *labelled)])
    axes.set_ylabel(results["task"]["metric"])
    axes.margins(y=0.12)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    _place_labels(figure, axes, labelled)
    return figure


def course_plot(results: Mapping[str, Any]) -> str | None:
    """Measured reward of the candidates in the order in which they were tried, and the best so far.

    Args:
        results: results.json.

    Returns:
        An SVG element, or None if no candidate was trained.
    """
    tried = [each for each in results["candidates"] if each["reward"] is not None]
    if not tried:
        return None
    numbers, rewards = range(1, len(tried) + 1), [each["reward"] for each in tried]
    floor = _floor(sorted(rewards)[len(rewards) // 2 :])
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure()
        for index in range(1, len(tried)):
            if tried[index]["episode"] != tried[index - 1]["episode"]:
                axes.axvline(index + 0.5, color="#d1d5db", linewidth=0.8, linestyle=":", zorder=0)
        best = [max(value, floor) for value in accumulate(rewards, max)]
        axes.plot(numbers, best, color="#374151", linewidth=1.2, drawstyle="steps-post", label="best so far")
        roles = {each["architecture"]: each["winner"] for each in results["finalists"]}
        points: dict[bool | None, list[Point]] = {None: [], False: [], True: []}
        for number, each in zip(numbers, tried, strict=True):
            points[roles.get(each["architecture"])].append(Point(number, each["reward"]))
        _scatter_down_to(floor, axes, points[None], "candidates")
        _scatter(axes, points[False], _MARKS["finalist"], "later finalists")
        _scatter(axes, points[True], _MARKS["winner"], "later the winner")
        axes.margins(0.06)
        axes.set_xlabel("candidates trained")
        axes.set_ylabel("measured reward")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
        return _svg(figure, "course", "Reward of the candidates in the order in which they were tried")


def reward_plot(pairs: Sequence[tuple[float, float]]) -> str:
    """Measured reward against what the controller predicted.

    Args:
        pairs: Predicted and measured reward of each candidate that has both.

    Returns:
        An SVG element.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure()
        predicted, measured = zip(*pairs, strict=True)
        axes.scatter(predicted, measured, s=26, color="#0072b2", alpha=0.75, linewidths=0)
        axes.margins(0.08)
        low, high = min(*predicted, *measured), max(*predicted, *measured)
        axes.plot([low, high], [low, high], color="#9ca3af", linestyle="--", linewidth=1, zorder=0)
        axes.set_xlabel("predicted reward")
        axes.set_ylabel("measured reward")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        return _svg(figure, "reward", "Measured against predicted reward of the candidates")


def narrowing_plot(looks: Sequence[Mapping[str, float]]) -> str:
    """Discrepancies from the teacher over the steps, while the student's hidden size falls.

    Each term is a part of its largest value, because they are of different kinds.

    Args:
        looks: `step`, `hidden_size` and terms by name, in order.

    Returns:
        An SVG element.
    """
    steps = [look["step"] for look in looks]
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure()
        names = [name for name in looks[0] if name.startswith(DISCREPANCY)]
        for colour, line, name in zip(cycle(_COLOURS), cycle(_LINES), names, strict=False):
            values = [look[name] for look in looks]
            largest = max(values) or 1.0
            label = f"{name.removeprefix(DISCREPANCY)} (1 is {largest:.3g})"
            shares = [value / largest for value in values]
            axes.plot(steps, shares, color=colour, linestyle=line, linewidth=1.4, label=label)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("steps")
        axes.set_ylabel("discrepancy on held-out rows")
        widths = axes.twinx()
        sizes = [look["hidden_size"] for look in looks]
        widths.fill_between(
            steps, sizes, step="post", color="#9ca3af", alpha=0.25, linewidth=0, label="hidden size"
        )
        widths.set_ylim(0, max(sizes) * 1.05)
        widths.set_ylabel("hidden size")
        axes.set_zorder(widths.get_zorder() + 1)
        axes.patch.set_visible(False)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
        return _svg(
            figure, "narrowing", "Discrepancies from the teacher, and the hidden size, over the steps"
        )


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=72, layout="constrained")
    FigureCanvasAgg(figure)  # measures text for the placing of labels
    axes = figure.add_subplot()
    axes.grid(color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _label(row: Row) -> str:
    """Finalists lie close together and have none: the table names them."""
    if row.role == "winner":
        return row.architecture.rpartition("-")[0]  # without the activation
    return {"finalist": "", "hand-crafted": row.name}.get(row.role, row.role)


def _floor(values: Sequence[float]) -> float:
    """The lowest value that the picture shows."""
    best, worst = max(values), min(values)
    return best - max(_DEPTH * (best - worst), _LEAST_DEPTH * abs(best))


def _scatter_down_to(floor: float, axes: Axes, points: Sequence[Point], label: str) -> None:
    """Candidates, those below the picture as arrow heads at its lower edge."""
    _scatter(axes, [point for point in points if point.y >= floor], _CANDIDATES, label)
    _scatter(
        axes,
        [Point(point.x, floor) for point in points if point.y < floor],
        _BELOW,
        "candidates below the picture",
    )


def _scatter(axes: Axes, points: Sequence[Point], mark: _Mark, label: str) -> None:
    if not points:
        return
    axes.scatter(
        [point.x for point in points],
        [point.y for point in points],
        s=mark.size,
        marker=mark.marker,
        facecolors=mark.colour if mark.filled else "none",
        edgecolors=mark.colour,
        linewidths=0.9,
        label=label,
        zorder=3 if mark.filled else 2,
    )


def _draw_front(axes: Axes, points: Iterable[Point], colour: str, style: str) -> None:
    front = pareto_front(points, lambda point: (point.y, point.x))
    axes.plot(
        [point.x for point in front],
        [point.y for point in front],
        color=colour,
        linestyle=style,
        linewidth=1.2,
        drawstyle="steps-post",
        zorder=1,
    )


def _latency_axis(axes: Axes, latencies: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers at 1, 2, 5 and the like."""
    axes.set_xscale("log")
    axes.set_xlim(min(latencies) / 1.25, max(latencies) * 1.25)
    low, high = axes.get_xlim()
    steps = [base * 10.0**power for power in range(-3, 6) for base in (1, 1.5, 2, 3, 5, 7)]
    axes.set_xticks([step for step in steps if low <= step <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("latency in ms (logarithmic)")


def _place_labels(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Write each label where it covers the fewest other labels and marks."""
    figure.draw_without_rendering()
    places = [axes.transData.transform((point.x, point.y)) for point in points]
    marks = [Bbox.from_extents(x - _REACH, y - _REACH, x + _REACH, y + _REACH) for x, y in places]
    boxes: list[Bbox] = []
    for point in (each for each in points if each.label):
        options = [_annotate(axes, point, *place) for place in _PLACES]
        extents = [option.get_window_extent() for option in options]
        costs = [_cost(extent, boxes, marks, axes.get_window_extent()) for extent in extents]
        best = costs.index(min(costs))
        boxes.append(extents[best])
        for index, option in enumerate(options):
            if index != best:
                option.remove()


def _annotate(axes: Axes, point: Point, right: float, up: float, align: Any) -> Annotation:
    return axes.annotate(
        point.label,
        (point.x, point.y),
        xytext=(right, up),
        textcoords="offset points",
        ha=align,
        fontsize=8.5,
        color="#374151",
        zorder=2.5,  # never over a mark
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7},
    )


def _cost(extent: Bbox, labels: Sequence[Bbox], marks: Sequence[Bbox], frame: Bbox) -> int:
    """How many labels and marks a label would touch; leaving the frame counts as two."""
    outside: bool = (
        extent.x0 < frame.x0 or extent.x1 > frame.x1 or extent.y0 < frame.y0 or extent.y1 > frame.y1
    )
    return sum(bool(extent.overlaps(box)) for box in (*labels, *marks)) + 2 * outside


def _svg(figure: Figure, prefix: str, title: str) -> str:
    """The figure as an SVG element whose ids don't clash with another one's on the page."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg[svg.index("<svg ") :])
    opening, content = svg.split(">", 1)
    opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)  # the page's width decides
    return f'{opening} role="img" aria-label="{title}">{content}'
