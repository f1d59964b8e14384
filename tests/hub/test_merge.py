"""Merging a new card into an older one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hf_kdnas.hub.card import card_text
from hf_kdnas.hub.merge import ASIDE, SECTIONS, merge_cards, write_card

OURS = """\
---
tags:
- hf-kdnas
- onnx
pipeline_tag: text-classification
---

# new

Its preamble.

## How to use it

```python
## no heading
```

## Limits

New limits.
"""


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_our_sections_are_made_again_and_others_stay_in_place() -> None:
    older = (
        OURS.replace("new", "old")
        .replace("New", "Old")
        .replace("\n## Limits", "\n## Mine\n\n```bash\n## a comment\n```\n\n## Limits")
    )
    merged = merge_cards(OURS, f"{older}\n## Citation\n\nOf another method.\n\n## Last\n\nWords.\n")
    body = OURS.split("---\n\n")[1]
    mine = "## Mine\n\n```bash\n## a comment\n```\n\n"
    assert (
        merged.text.split("---\n\n")[1]
        == body.replace("## Limits", f"{mine}## Limits") + "\n## Last\n\nWords.\n"
    )
    assert merged.kept == ("Mine", "Last")
    assert merged.invalid == ""


def test_merging_again_changes_nothing() -> None:
    once = merge_cards(OURS, f"{OURS}\n## Mine\n\nText.\n").text
    assert merge_cards(OURS, once).text == once
    assert merge_cards(once, once).text == once


def test_the_older_cards_own_words_win_over_the_same_section_from_elsewhere() -> None:
    here = merge_cards(OURS, f"{OURS}\n## Mine\n\nOlder.\n").text
    merged = merge_cards(here, f"{OURS}\n## Mine\n\nNewer.\n").text
    assert merged.count("## Mine") == 1
    assert "Newer." in merged


def test_of_a_readme_that_is_no_card_of_ours_everything_stays() -> None:
    older = "# Hello\n\nA word.\n\n## Limits\n\nNone.\n"
    merged = merge_cards(OURS, older).text
    assert merged.endswith("\n" + older)
    assert "New limits." in merged


def test_metadata_of_both() -> None:
    older = """\
---
license: mit
language: [de]
thumbnail: a.png
pipeline_tag: fill-mask
tags: [mine, onnx]
model-index:
- name: new
  results: [1]
- name: other
  results: [2]
---
"""
    new = OURS.replace(
        "pipeline_tag", "license: apache-2.0\nmodel-index:\n- {name: new, results: [3]}\npipeline_tag"
    )
    assert metadata(merge_cards(new, older.replace("\n", "\r\n")).text) == {
        "license": "mit",
        "language": ["de"],
        "thumbnail": "a.png",
        "pipeline_tag": "text-classification",
        "tags": ["hf-kdnas", "onnx", "mine"],
        "model-index": [{"name": "new", "results": [3]}, {"name": "other", "results": [2]}],
    }


@pytest.mark.parametrize("front", ["license: [mit", "- a", "a: b: c", "license: 'mit\n"])
def test_metadata_that_cant_be_read_are_left_out(front: str) -> None:
    merged = merge_cards(OURS, f"---\n{front}\n---\n## Mine\n\nText.\n")
    assert merged.invalid
    assert metadata(merged.text) == metadata(OURS)
    assert "## Mine" in merged.text


def test_a_file_that_cant_be_read_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    write_card(path, OURS)
    assert path.read_text() == OURS
    assert not (tmp_path / ASIDE).exists()
    broken = OURS.replace("tags:", "tags: [")
    path.write_text(broken)
    write_card(path, OURS)
    assert path.read_text() == OURS
    assert (tmp_path / ASIDE).read_text() == broken


def test_the_headings_of_our_templates_are_known(results: dict) -> None:
    distilled = results | {"workflow": "distill"}
    for each in (results, distilled):
        headings = [
            line.removeprefix("## ") for line in card_text(each).splitlines() if line.startswith("## ")
        ]
        assert set(headings) <= set(SECTIONS)
        assert headings
