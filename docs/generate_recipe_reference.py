"""Write recipe-reference.md from the dataclasses of `hf_kdnas.recipe`: `make docs`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import MISSING
from pathlib import Path

from hf_kdnas.recipe import recipe_options
from hf_kdnas.recipe_files import Option

PAGE = Path(__file__).with_name("recipe-reference.md")

INTRODUCTION = """\
# Recipe reference

<!-- Made by docs/generate_recipe_reference.py from hf_kdnas/recipe.py; `make docs` makes it again. -->

A recipe is a YAML file, nested by the dots of the keys below. Every key can also be given on the command
line, as `--search.episodes 5`. `kdnas search --config RECIPE --print_config` prints a recipe with all
defaults filled in; an unknown key is refused, and the nearest known one named. Keys without a default must
be given.
"""


def reference() -> str:
    """The page."""
    parts = [INTRODUCTION]
    sections: dict[str, list[Option]] = {}
    for option in recipe_options():
        sections.setdefault(option.key.rpartition(".")[0], []).append(option)
    for section, options in sections.items():
        parts += [f"## {f'`{section}`' if section else 'The run'}", "", *_table(options), ""]
    return "\n".join(parts)


def _table(options: Iterable[Option]) -> list[str]:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for option in options:
        limits = f" ({option.limits_text})" if option.limits_text else ""
        cells = (f"`{option.key}`", option.type_text, _default(option), f"{option.help}{limits}")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return rows


def _default(option: Option) -> str:
    return "" if option.value is MISSING else f"`{json.dumps(option.value)}`"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(PAGE)
