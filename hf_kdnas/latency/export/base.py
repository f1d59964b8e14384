"""What an export back end is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def put_graph(scratch: Path, folder: Path) -> None:
    """Move an exported graph to its folder, after the file beside it that weights above 2 GB lie in."""
    for file in sorted(scratch.iterdir(), reverse=True):  # model.onnx_data, then model.onnx
        file.replace(folder / file.name)


class Exporter(Protocol):
    """Writes a model as an ONNX file with dynamic batch and length."""

    name: str

    @staticmethod
    def available() -> bool:
        """Whether its packages are installed."""

    def export(self, model: PreTrainedModel, path: Path) -> None:
        """Write a model with a task head as ONNX, its outputs under Transformers' own names.

        They are `logits`; for question answering `start_logits` and `end_logits`; without a head
        `last_hidden_state`.

        Args:
            model: On the CPU, in evaluation mode.
            path: The file to write.
        """
