"""A teacher's PEFT adapter: found, looked at before any work, and merged into the weights."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_kdnas.errors import InvalidInput, MissingPackage
from hf_kdnas.resources import resolve_path, why_not_loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FIELD = "teacher.adapter"
ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"


def check_adapter(adapter: str, revision: str | None = None) -> dict[str, Any]:
    """Look at an adapter before any work.

    Args:
        adapter: Its folder or Hub id.
        revision: Of one on the Hub.

    Returns:
        Its config.

    Raises:
        MissingPackage: If peft isn't installed.
        InvalidInput: If there is no such adapter, or its weights aren't safetensors.
    """
    if find_spec("peft") is None:
        raise MissingPackage("peft", f"for {_FIELD}", '"hf-kdnas[peft]"')
    folder = _folder(adapter, revision)
    try:
        config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            _FIELD,
            adapter,
            f"must have an {ADAPTER_CONFIG} ({error})",
            "Give what PEFT's save_pretrained wrote.",
        ) from error
    if not (folder / _WEIGHTS).is_file():
        raise InvalidInput(
            _FIELD,
            adapter,
            f"must have an {_WEIGHTS}: loading {_PICKLED} may run code",
            "If you trust it, load it with PEFT and write it with save_pretrained.",
        )
    return config


def brings_head(adapter: str | None, revision: str | None = None) -> bool:
    """Whether there is an adapter, and a task head in it."""
    return adapter is not None and bool(check_adapter(adapter, revision).get("modules_to_save"))


def merge_adapter(model: PreTrainedModel, adapter: str, revision: str | None = None) -> PreTrainedModel:
    """A model with an adapter merged into its weights: a stock model again.

    Args:
        model: The model that the adapter was trained on; changed in place.
        adapter: The adapter's folder or Hub id.
        revision: Of one on the Hub.

    Raises:
        InvalidInput: If the adapter is of another model, or of a kind that can't be merged.
    """
    from peft import PeftModel

    folder = _folder(adapter, revision)
    try:
        with warnings.catch_warnings():
            # What an adapter lacks would stay as it was drawn, and do nothing.
            warnings.filterwarnings("error", "Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    # PEFT raises errors of many kinds, among them AttributeError for adapters that can't be merged.
    except Exception as error:
        raise InvalidInput(
            _FIELD,
            adapter,
            "must be an adapter of this teacher, of a kind that can be merged, such as LoRA",
            " ".join(str(error).split()),
        ) from error
    merged.requires_grad_(True)  # PEFT froze what it adapted
    return merged


def _folder(adapter: str, revision: str | None) -> Path:
    """An adapter's folder; one on the Hub is fetched, its config and safetensors alone."""
    folder = Path(resolve_path(adapter))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        patterns = [ADAPTER_CONFIG, _WEIGHTS]
        return Path(snapshot_download(adapter, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            _FIELD, adapter, "must be a folder or a Hub id", why_not_loaded(adapter, error)
        ) from error
