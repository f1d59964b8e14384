"""The card of a student that `kdnas superlm extract` wrote, from what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hf_kdnas.errors import InvalidInput
from hf_kdnas.families.exact_bert import EXACT_BERT
from hf_kdnas.hub.card import SEARCH_TAG, card_environment, citations
from hf_kdnas.hub.merge import TAG, write_card
from hf_kdnas.hub.sources import (
    adapter_name,
    base_model,
    dataset_name,
    hub_dataset,
    licence,
    teacher_name,
    teacher_revision,
)
from hf_kdnas.report import view
from hf_kdnas.run import read_json

# What a student's folder says of where it is from.
EXTRACTED = "extracted.json"


def load_extracted(folder: Path) -> dict[str, Any]:
    """Read what a student's folder says of where it is from.

    Raises:
        InvalidInput: If it says nothing, or too little for a card.
    """
    try:
        found = read_json(folder / EXTRACTED)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "front" not in found:
        raise InvalidInput(
            "RUN",
            str(folder),
            f"its {EXTRACTED} is damaged, or an older version's",
            "Repeat kdnas superlm extract.",
        )
    return found


def render_extracted_card(folder: Path) -> Path:
    """Write `README.md` into an extracted student's folder; what a person added to it stays.

    Raises:
        InvalidInput: If nothing there says where it is from.
    """
    path = folder / "README.md"
    write_card(path, extracted_card(load_extracted(folder)))
    return path


def extracted_card(found: Mapping[str, Any], repo_id: str | None = None) -> str:
    """The card: metadata for the Hub, then Markdown.

    Args:
        found: What `extracted.json` holds.
        repo_id: The repository that it is for; None where there is none yet.
    """
    return (
        card_environment()
        .get_template("superlm.md.jinja")
        .render(
            metadata=_metadata(found).to_yaml().strip(),
            found=found,
            repo_id=repo_id or f"{found['name']}-{found['architecture']}",
            teacher_name=teacher_name(found),
            teacher_revision=teacher_revision(found),
            adapter_name=adapter_name(found),
            dataset_name=dataset_name(found),
            licence=licence(found),
            citations=citations(found["objectives"]),
            view=view,
            exact=found["model_type"] in EXACT_BERT.model_types,
        )
    )


def _metadata(found: Mapping[str, Any]) -> ModelCardData:
    dataset, _ = hub_dataset(found)
    return ModelCardData(
        model_name=f"{found['name']} {found['architecture']}",
        **base_model(found),
        **licence(found),
        datasets=dataset,
        library_name="transformers",
        pipeline_tag="fill-mask" if found["head"] else "feature-extraction",
        tags=[TAG, "distillation", "knowledge-distillation", SEARCH_TAG],
    )
