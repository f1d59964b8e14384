"""The report of a run: one HTML file, from results.json alone."""

from __future__ import annotations

from hf_kdnas.report.render import render_report

__all__ = ["render_report"]
