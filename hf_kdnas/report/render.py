"""Filling in the report's page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hf_kdnas.credentials import without_credentials
from hf_kdnas.report import view
from hf_kdnas.report.formats import FORMATS
from hf_kdnas.report.plots import course_plot, narrowing_plot, pareto_plot, reward_plot
from hf_kdnas.run import write_text


def render_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's folder: one file that needs no network.

    Everything in it comes from `results.json`, so that it can be made again at any time.

    Args:
        run_dir: Folder of a run.

    Returns:
        The file.

    Raises:
        InvalidInput: If the run has no results.json.
    """
    path = run_dir / "report.html"
    write_text(path, report_html(view.load_results(run_dir)))
    return path


def report_html(results: Mapping[str, Any]) -> str:
    """The page.

    Args:
        results: What results.json holds.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FORMATS)
    models = view.rows(results)
    pairs = view.predictions(results)
    course = course_plot(results)
    narrowed = results.get("homotopic")  # runs of earlier versions don't say
    # The pictures are Markup: matplotlib escapes the texts in them.
    return environment.get_template("report.html.jinja").render(
        results={**results, "recipe": without_credentials(results["recipe"])},
        view=view,
        models=models,
        pareto=Markup(pareto_plot(results, models)),
        course=Markup(course) if course else None,
        rewards=Markup(reward_plot(pairs)) if pairs else None,
        pairs=pairs,
        narrowed=narrowed,
        narrowing=Markup(narrowing_plot(narrowed["discrepancy"])) if narrowed else None,
    )
