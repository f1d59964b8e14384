"""Write benchmarks.md from benchmarks/results: `make docs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("benchmarks.md")
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

INTRODUCTION = """\
# Benchmarks

<!-- Made by docs/generate_benchmarks.py from benchmarks/results/; `make docs` makes it again. -->

What was measured, by the scripts in `benchmarks/`: each says what it does and how long it takes, keeps every
finished cell and goes on from there. Latency ratios are of models timed in turn in one run. A target that was
not reached, or not measured to its end, says SHORT. The JSON beside each table has the versions and the
processor of every cell.
"""


def benchmarks() -> str:
    """The page."""
    parts = [INTRODUCTION]
    for path in sorted(RESULTS.glob("*.json")):
        parts += [f"## {path.stem}", "", *_section(json.loads(path.read_text(encoding="utf-8"))), ""]
    return "\n".join(parts)


def _section(results: dict[str, Any]) -> list[str]:
    places = {_place(cell["environment"]) for cell in results["cells"].values()}
    return [
        *(f"Measured on {place}." for place in sorted(places)),
        "",
        *results["table"],
        "",
        *(f"- `{line}`" for line in results["targets"]),
        *(f"- {name}: {cell['note']}" for name, cell in results["cells"].items() if "note" in cell),
    ]


def _place(environment: dict[str, str]) -> str:
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "transformers", "onnxruntime"))
    cores = f"{environment['cores']} core{'' if environment['cores'] == '1' else 's'}"
    return f"{environment['device']}, {cores}, {versions}"


if __name__ == "__main__":
    PAGE.write_text(benchmarks(), encoding="utf-8")
    print(PAGE)
