"""A new card merged into one that is there already: what a person wrote stays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_kdnas.run import write_text

CARD = "README.md"
# Where an edited card is kept whose metadata can't be read.
ASIDE = "README.aside.md"

# Headings that our templates make, in this or another kind of run: made again, never kept.
SECTIONS = ("How to use it", "Latency", "How it was made", "Limits", "Versions", "Citation")

# What makes a card one of ours, among its tags.
TAG = "kdnas"

# What a person decides, not a run.
_PERSONS_OWN = ("license", "license_name", "license_link", "language")

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n?---[ \t]*(?:\n|\Z)", re.DOTALL)
_FENCE = re.compile(r" {0,3}(```|~~~)")


@dataclass(frozen=True)
class MergedCard:
    """A card.

    Attributes:
        text: Metadata and Markdown.
        kept: Headings of the sections that were not ours.
        invalid: What is wrong with the older card's metadata, which were then left out; else empty.
    """

    text: str
    kept: tuple[str, ...] = ()
    invalid: str = ""


def merge_cards(card: str, older: str) -> MergedCard:
    """Put what a person wrote in an older card into a new one.

    A section is what stands under a heading of the second level. Those of SECTIONS are the new
    card's; others stay behind the section that they followed. Of a README that is no card of ours
    everything stays. Of the metadata, lists are united, licence and language stay, results under
    another model's name stay, and for the rest the new card decides.

    Args:
        card: The new card.
        older: The text that it takes the place of.
    """
    front, body = _split(card)
    older_front, older_body = _split(older.replace("\r\n", "\n"))
    metadata, invalid = yaml.safe_load(front), ""
    try:
        metadata = _merged_metadata(metadata, _metadata(older_front))
    except ValueError as error:
        invalid = str(error)
    sections = _sections(body)
    kept = _foreign(_sections(older_body), is_ours=TAG in older_front)
    placed = _placed(sections, kept)
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000).strip()
    headings = tuple(each.heading for each, _ in kept if each.heading)
    return MergedCard(f"---\n{front}\n---\n\n{placed}", headings, invalid)


def write_card(path: Path, card: str) -> None:
    """Write a card, merged into the file that is there; where that can't be read, it is kept as ASIDE."""
    if path.is_file():
        older = path.read_text(encoding="utf-8")
        merged = merge_cards(card, older)
        if merged.invalid:
            write_text(path.with_name(ASIDE), older)
        card = merged.text
    write_text(path, card)


@dataclass(frozen=True)
class _Section:
    """A heading of the second level, and its text with the heading; what is before the first has none."""

    heading: str
    text: str


def _split(text: str) -> tuple[str, str]:
    """The YAML before a card, and its Markdown."""
    found = _FRONT_MATTER.match(text)
    return (found[1], text[found.end() :]) if found else ("", text)


def _metadata(front: str) -> dict[str, Any]:
    """A card's metadata.

    Raises:
        ValueError: If they are no mapping in YAML, with the reason.
    """
    try:
        found = yaml.safe_load(front) or {}
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    if not isinstance(found, dict):
        raise ValueError(f"metadata must be a mapping, not {found!r}")
    return found


def _merged_metadata(ours: dict[str, Any], older: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**older, **ours}
    for name in _PERSONS_OWN:
        if older.get(name):
            merged[name] = older[name]
    for name in ours.keys() & older.keys():
        if name == "model-index":
            names = {each.get("name") for each in ours[name]}
            merged[name] = ours[name] + [each for each in older[name] or [] if each.get("name") not in names]
        elif isinstance(ours[name], list):
            rest = older[name] if isinstance(older[name], list) else [older[name]]
            merged[name] = ours[name] + [each for each in rest if each and each not in ours[name]]
    return merged


def _sections(body: str) -> list[_Section]:
    """A card's sections; a `##` inside a block of code is none."""
    found: list[tuple[str, list[str]]] = [("", [])]
    fence = ""
    for line in body.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1] == fence:
            fence = ""
        if line.startswith("## ") and not fence:
            found.append((line.removeprefix("## ").strip(), []))
        found[-1][1].append(line)
    return [_Section(heading, "".join(lines)) for heading, lines in found]


def _foreign(older: Iterable[_Section], *, is_ours: bool) -> list[tuple[_Section, str]]:
    """The sections of an older card that a person wrote, each with the heading of ours that it followed."""
    found: list[tuple[_Section, str]] = []
    place = "" if is_ours else SECTIONS[-1]
    for each in older:
        if is_ours and each.heading in ("", *SECTIONS):
            place = each.heading
        elif each.text.strip():
            found.append((each, place))
    return found


def _placed(sections: Iterable[_Section], kept: Sequence[tuple[_Section, str]]) -> str:
    """The sections in order, each kept one behind that which it followed, or at the end.

    A section that a person wrote into the new card, too, gives way to the older card's.
    """
    known = {each.heading for each, _ in kept}
    ours = [each for each in sections if each.heading in ("", *SECTIONS) or each.heading not in known]
    headings = {each.heading for each in ours}
    parts: list[str] = []
    for each in ours:
        parts += [each.text, *(other.text for other, place in kept if place == each.heading)]
    parts += [other.text for other, place in kept if place not in headings]
    return "\n".join(f"{part.strip()}\n" for part in parts if part.strip())
