"""Export to ONNX: one back end a file."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_kdnas.errors import InvalidInput, MissingPackage
from hf_kdnas.latency.export.base import Exporter, put_graph
from hf_kdnas.latency.export.optimum import OptimumExporter
from hf_kdnas.latency.export.transformers import TransformersExporter
from hf_kdnas.latency.target import LatencyTarget

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

EXPORTERS: dict[str, type[Exporter]] = {
    "optimum": OptimumExporter,
    "transformers": TransformersExporter,
}
_INSTALL = {
    "optimum": '"hf-kdnas[optimum,onnxruntime]"',
    "transformers": '"hf-kdnas[onnx,onnxruntime]" "transformers>=5.21"',
}

# Exported and PyTorch logits differ by rounding; more than this is another function.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class ExportReport:
    """An exported model.

    Attributes:
        path: The ONNX file.
        max_abs_difference: Largest difference between its outputs and PyTorch's on the sample.
    """

    path: Path
    max_abs_difference: float


def get_exporter(name: str = "auto") -> Exporter:
    """An export back end; `auto` takes the first whose packages are there.

    Raises:
        MissingPackage: If its packages are missing, with the line that installs them.
        InvalidInput: If there is no such back end.
    """
    if name not in ("auto", *EXPORTERS):
        raise InvalidInput(
            "export.backend", name, f"back ends are auto, {', '.join(EXPORTERS)}", "Choose one of these."
        )
    wanted = list(EXPORTERS) if name == "auto" else [name]
    for each in wanted:
        if EXPORTERS[each].available():
            return EXPORTERS[each]()
    if name != "auto":
        raise MissingPackage(name, "to export to ONNX", _INSTALL[name])
    # Optimum would put Transformers 4 in the place of what is there.
    fitting = "optimum" if int(version("transformers").split(".")[0]) < 5 else "transformers"
    raise MissingPackage("an ONNX exporter", "to export to ONNX", _INSTALL[fitting])


def export_model(model: PreTrainedModel, folder: Path, *, exporter: Exporter) -> ExportReport:
    """Write `onnx/model.onnx` into a model's folder, whole or not at all, and compare it.

    Args:
        model: A model with a task head, on the CPU.
        folder: The model's folder.
        exporter: The back end.

    Raises:
        RuntimeError: If ONNX and PyTorch logits differ by more than TOLERANCE (with the number).
    """
    target = folder / "onnx" / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        unfinished = Path(scratch) / "model.onnx"
        exporter.export(_stock(model), unfinished)
        model.eval()
        difference = _difference(model, unfinished)
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"the ONNX model of {type(model).__name__} gives logits that differ by {difference:.2g} from "
                f"PyTorch's (at most {TOLERANCE:g} is rounding); back end {exporter.name}"
            )
        put_graph(Path(scratch), target.parent)
    return ExportReport(target, difference)


def _stock(model: PreTrainedModel) -> PreTrainedModel:
    """The model as `from_pretrained` makes it, whatever attention it was trained with.

    Graphs of one attention implementation alone can be compared by their latency.
    """
    config = copy.deepcopy(model.config)
    config._attn_implementation = None
    with torch.random.fork_rng(devices=[]):
        stock = type(model)(config)
    stock.load_state_dict(model.state_dict())
    stock.eval()
    return stock


def _difference(model: PreTrainedModel, path: Path) -> float:
    """Largest difference of all outputs, on padded rows of several lengths and on a single row."""
    longest = min(48, getattr(model.config, "max_position_embeddings", 512) - 2)
    session = LatencyTarget().session(path)
    asked = {each.name for each in session.get_inputs()}
    outputs = [each.name for each in session.get_outputs()]
    largest = []
    for lengths in ([longest, max(1, longest // 2), max(1, longest // 3), 1], [max(1, longest - 5)]):
        sample = {name: value for name, value in _sample(model, lengths).items() if name in asked}
        with torch.inference_mode():
            wanted = model(**sample)
        found = session.run(outputs, {name: value.numpy() for name, value in sample.items()})
        for name, values in zip(outputs, found, strict=True):
            largest.append(np.abs(values - wanted[name].float().numpy()).max())
    # NaN, unlike Python's max, is kept by NumPy's.
    return float(np.max(largest))


def _sample(model: PreTrainedModel, lengths: list[int]) -> dict[str, Tensor]:
    """Random rows, padded to the longest: ids, mask, and token types of every kind."""
    shape = (len(lengths), max(lengths))
    generator = torch.Generator().manual_seed(0)
    config = model.config
    ids = torch.randint(0, config.vocab_size, shape, generator=generator)
    types = torch.randint(0, max(1, getattr(config, "type_vocab_size", 1)), shape, generator=generator)
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    ids = ids.masked_fill(mask == 0, config.pad_token_id or 0)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types * mask}
