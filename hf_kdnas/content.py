"""Keys by content: the same weights, rows and settings give the same key on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and persistent buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        # As bytes, because NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def rows_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of tokenised rows: their token ids, types, and all that says what is right."""
    digest = hashlib.sha256()
    for row in rows:
        kept = [row["input_ids"], row.get("token_type_ids"), row.get("labels")]
        kept += [row[name] for name in ("start_positions", "end_positions", "answers") if name in row]
        digest.update(json.dumps(kept).encode())
    return digest.hexdigest()


def columns_hash(columns: Iterable[Any]) -> str:
    """SHA-256 of Arrow's columns, whatever chunks they are in: a million values take a second."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(json.dumps(column.to_pylist()).encode())
    return digest.hexdigest()


def settings_hash(*settings: Any) -> str:
    """SHA-256 of anything that JSON can hold, 16 hexadecimal digits of it: enough for a folder's name."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
