"""Latency of a shape: weights don't matter, so a model of random weights is exported and timed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_kdnas.latency.export.base import put_graph
from hf_kdnas.latency.measure import LatencyReport, measure
from hf_kdnas.latency.quantise import quantise
from hf_kdnas.latency.store import latency_key

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_kdnas.latency.export.base import Exporter
    from hf_kdnas.latency.store import LatencyStore
    from hf_kdnas.latency.target import LatencyTarget


def export_shape(model_class: type[Any], config: PretrainedConfig, exporter: Exporter, path: Path) -> None:
    """Write the graph of a shape with random weights, whole or not at all, unless it is there.

    The global random numbers stay as they are: whether a shape was measured before must not decide what
    is drawn afterwards.

    Args:
        model_class: Class of the model.
        config: The shape.
        exporter: Makes the graph.
        path: The file to write.
    """
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as scratch:
        unfinished = Path(scratch) / path.name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = model_class(config).eval()
        exporter.export(model, unfinished)
        put_graph(Path(scratch), path.parent)


def measure_shape(
    model_class: type[Any],
    config: PretrainedConfig,
    target: LatencyTarget,
    *,
    reference: Path,
    reference_config: PretrainedConfig,
    exporter: Exporter,
    store: LatencyStore,
) -> LatencyReport:
    """The latency of a shape against a reference, from the store or measured now.

    Args:
        model_class: Class of the model.
        config: The shape.
        target: Where and how; for INT8 both graphs are quantised.
        reference: ONNX file of the reference, fp32, made of its shape where it is needed and not there; its
            INT8 copy, where one is needed, is kept beside it.
        reference_config: Its shape.
        exporter: Makes the graph.
        store: What was measured before.
    """
    key = latency_key(config, target, reference_config, model_class.__name__, exporter.name)
    known = store.get(key)
    if known is not None:
        return known
    export_shape(model_class, reference_config, exporter, reference)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        export_shape(model_class, config, exporter, path)
        report = measure(_at(target, path), target, reference=_at(target, reference))
    store.put(key, report)
    return report


def _at(target: LatencyTarget, path: Path) -> Path:
    """A graph in the target's precision."""
    if target.precision == "fp32":
        return path
    quantised = path.with_name(f"{path.stem}_int8.onnx")
    return quantised if quantised.is_file() else quantise(path, quantised)
