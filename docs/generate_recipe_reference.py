"""Write recipe-reference.md from the dataclasses of `hf_kdnas.recipe` and the objectives: `make docs`."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING
from pathlib import Path

from hf_kdnas.distill.objectives import OBJECTIVES, Objective
from hf_kdnas.recipe import recipe_options
from hf_kdnas.recipe_files import Option

PAGE = Path(__file__).with_name("recipe-reference.md")

INTRODUCTION = """\
# Recipe reference

<!-- Made by docs/generate_recipe_reference.py from hf_kdnas/recipe.py and the objectives; `make docs` makes
it again. -->

A recipe is a YAML file, nested by the dots of the keys below. Every key can also be given on the command
line, as `--search.episodes 5`. `kdnas search --config RECIPE --print_config` prints a recipe with all
defaults filled in; an unknown key is refused, and the nearest known one named. Keys without a default must
be given.
"""

OBJECTIVES_INTRODUCTION = """\
## Options of the objectives

Of those in `distillation.objectives`, `compare.objectives` and `superlm.objectives`, each beside its `weight`
(1.0). [Concepts](concepts.md#objectives) says what a student learns from each.

| option | default | meaning |
|---|---|---|
"""


def reference() -> str:
    """The page."""
    parts = [INTRODUCTION]
    sections: dict[str, list[Option]] = {}
    for option in recipe_options():
        sections.setdefault(option.key.rpartition(".")[0], []).append(option)
    for section, options in sections.items():
        parts += [f"## {f'`{section}`' if section else 'The run'}", "", *_table(options), ""]
    return "\n".join(parts) + "\n" + OBJECTIVES_INTRODUCTION + "".join(_objective_rows())


def _objective_rows() -> Iterator[str]:
    for name, kind in OBJECTIVES.items():
        for option in inspect.signature(kind).parameters.values():
            # What a student is, and the map that its first weights come with, is not the recipe's to say.
            if option.name in ("student", "teacher", "projection"):
                continue
            default = json.dumps(option.default)
            yield f"| `{name}.{option.name}` | `{default}` | {_meaning(kind, option.name)} |\n"


def _meaning(kind: type[Objective], option: str) -> str:
    """What an objective's docstring says of an option."""
    found = re.search(rf"^    {option}: (.*(?:\n {{8}}.*)*)", inspect.getdoc(kind) or "", re.MULTILINE)
    if found is None:
        raise ValueError(f"the docstring of {kind.__name__} says nothing of {option}")
    text = " ".join(found[1].split()).rstrip(".").replace(" (see `layer_pairs`)", "")
    text = text.replace("None means", "null means")
    return text[0].lower() + text[1:]


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
