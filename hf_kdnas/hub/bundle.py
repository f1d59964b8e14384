"""What of a run is published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_kdnas.hub.card import card_pictures, card_text
from hf_kdnas.hub.extracted import EXTRACTED, extracted_card, load_extracted
from hf_kdnas.hub.merge import ASIDE, CARD, merge_cards
from hf_kdnas.hub.record import RECORD, record, shareable_results
from hf_kdnas.report import view
from hf_kdnas.report.render import report_html
from hf_kdnas.teacher import check_folder


@dataclass(frozen=True)
class Bundle:
    """Files for a repository.

    Attributes:
        card: The model card, with what a person wrote in the student's own.
        files: All others: where they are, or what they hold, by their path in the repository.
        notes: What a person should know of the card.
    """

    card: str
    files: Mapping[str, Path | bytes]
    notes: tuple[str, ...] = ()

    def sizes(self) -> dict[str, int]:
        """Bytes by path in the repository, the card's with them."""
        sizes = {
            name: file.stat().st_size if isinstance(file, Path) else len(file)
            for name, file in self.files.items()
        }
        return dict(sorted({CARD: len(self.card.encode()), **sizes}.items()))


def bundle_run(run_dir: Path, repo_id: str) -> Bundle:
    """Student, tokenizer, ONNX files, card, report and record of a finished run.

    Of a student that `kdnas superlm extract` wrote: its files, card and record.

    Nothing is written: the run's folder stays as it is.

    Args:
        run_dir: Folder of the run, or of such a student.
        repo_id: Where it is to be published; the card's code names it.

    Raises:
        InvalidInput: If the run isn't finished, or a file of it is damaged.
    """
    if (run_dir / EXTRACTED).is_file():
        return _bundle_extracted(run_dir, repo_id)
    results = _finished(run_dir)
    student = run_dir / "student"
    check_folder("RUN", str(student))
    shared = shareable_results(results)
    files: dict[str, Path | bytes] = {**_student_files(student), **card_pictures(results)}
    files["report.html"] = report_html(shared).encode()
    files[RECORD] = _record(shared, files)
    card, notes = _own_card(card_text(results, repo_id), student / CARD)
    return Bundle(card, files, notes)


def _bundle_extracted(folder: Path, repo_id: str) -> Bundle:
    """An extracted student's files, card and record."""
    found = load_extracted(folder)
    check_folder("RUN", str(folder))
    files: dict[str, Path | bytes] = dict(_student_files(folder))
    files[RECORD] = _record(shareable_results(found), files)
    card, notes = _own_card(extracted_card(found, repo_id), folder / CARD)
    return Bundle(card, files, notes)


def _student_files(student: Path) -> dict[str, Path]:
    """A student's own files, without what is made anew for a repository."""
    return {
        path.relative_to(student).as_posix(): path
        for path in sorted(student.rglob("*"))
        if path.is_file()
        and path.name not in (CARD, ASIDE, EXTRACTED)
        and not _hidden(path.relative_to(student))
    }


def _record(shared: dict[str, Any], files: Mapping[str, Path | bytes]) -> bytes:
    written = record(shared, sorted([*files, CARD, RECORD]))
    return (json.dumps(written, indent=2, ensure_ascii=False) + "\n").encode()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _own_card(card: str, older: Path) -> tuple[str, tuple[str, ...]]:
    """A card with what a person wrote in the student's own, and what is to be said of it."""
    if not older.is_file():
        return card, ()
    merged = merge_cards(card, older.read_text(encoding="utf-8"))
    if merged.invalid:
        return merged.text, (f"the metadata in {older} can't be read and are left out: {merged.invalid}",)
    return merged.text, ()


def _finished(run_dir: Path) -> dict[str, Any]:
    """The results of a run that has everything that is to be published.

    Raises:
        InvalidInput: If it hasn't, with what is missing.
    """
    results = view.load_results(run_dir)
    names = [
        "config.json",
        "onnx/model.onnx",
        *(["onnx/model_int8.onnx"] if results["student"]["int8"] else []),
    ]
    missing = [f"student/{name}" for name in names if not (run_dir / "student" / name).is_file()]
    if missing:
        raise view.unfinished(run_dir, f"it has no {', no '.join(missing)}")
    return results
