"""Export by Transformers itself (`transformers.exporters`), from Transformers 5.21 on."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hf_kdnas.latency.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

FIRST = (5, 21)

# Tokens of the rows that the graph is traced on; any number but 0 and 1, which tracers take for constants.
_LENGTH = 16


class TransformersExporter:
    """`transformers.exporters`, with batch and length as dynamic dimensions."""

    name = "transformers"

    @staticmethod
    def available() -> bool:
        """Whether Transformers is new enough and onnx and onnxscript are installed."""
        major, minor = (int(part) for part in version("transformers").split(".")[:2])
        packages = all(find_spec(name) is not None for name in ("onnx", "onnxscript"))
        return (major, minor) >= FIRST and packages

    def export(self, model: PreTrainedModel, path: Path) -> None:
        """Write a model with a task head as ONNX.

        Args:
            model: On the CPU, in evaluation mode.
            path: The file to write.
        """
        import onnx_ir  # type: ignore[import-not-found]  # comes with the `onnx` extra
        from torch.export import Dim
        from transformers.exporters import (  # type: ignore[import-not-found]  # from Transformers 5 on
            OnnxConfig,
            OnnxExporter,
        )

        inputs = _inputs(model)
        shapes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in inputs}
        with quiet():
            exported = OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic_shapes=shapes))
        # Until 5.22 a torch ONNXProgram, that holds the graph as `model`; then Transformers' own object.
        graph = exported.program if hasattr(exported, "program") else exported.model
        # A graph's file holds 2 GB: larger weights lie beside it, where Optimum puts them, too.
        large = sum(each.nbytes for each in model.parameters()) >= 2**31
        onnx_ir.save(graph, path, external_data=f"{path.name}_data" if large else None)


def _inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two rows, one of them padded, so that the mask is traced; token types where the model has several."""
    ids = torch.full((2, _LENGTH), 5)
    mask = torch.ones_like(ids)
    mask[1, _LENGTH // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    # Some configs keep fields that their models don't read.
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    if takes_types and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return inputs
