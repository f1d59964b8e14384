"""Write model_cards/example.md from the tests' made-up results: `make docs`."""

from __future__ import annotations

import json
from pathlib import Path

from hf_kdnas.hub.card import card_text

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "model_cards" / "example.md"
RESULTS = ROOT / "tests" / "report" / "results.json"


def example() -> str:
    """The card."""
    return card_text(json.loads(RESULTS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    PAGE.write_text(example(), encoding="utf-8")
    print(PAGE)
