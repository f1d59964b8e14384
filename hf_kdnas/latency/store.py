"""Latencies that were measured before, by shape, target, device and versions."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_kdnas.content import settings_hash
from hf_kdnas.environment import environment
from hf_kdnas.latency.measure import LatencyReport
from hf_kdnas.latency.target import LatencyTarget
from hf_kdnas.run import read_json, write_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Fields of a config that leave the graph's operations and shapes as they are. Any other may change them.
_NOT_IN_GRAPH = frozenset(
    [
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "auto_map",
        "bos_token_id",
        "classifier_dropout",
        "dropout",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "id2label",
        "initializer_range",
        "label2id",
        "layer_norm_eps",
        "pad_token_id",
        "problem_type",
        "qa_dropout",
        "sep_token_id",
        "seq_classif_dropout",
        "summary_last_dropout",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    ]
)
_ENVIRONMENT = (
    "cpu_flags",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "transformers",
    "optimum-onnx",
    "onnxscript",
)


def latency_key(
    config: PretrainedConfig, target: LatencyTarget, reference: PretrainedConfig, task: str, exporter: str
) -> str:
    """Key of a measurement: latency is a property of the shape, not of the weights.

    Args:
        config: The measured shape.
        target: Where and how it was measured.
        reference: The shape that it was timed in turn with.
        task: The head.
        exporter: The export back end.
    """
    here = environment()
    return settings_hash(
        _graph(config),
        _graph(reference),
        asdict(target),
        target.device,
        task,
        exporter,
        {name: here.get(name) for name in _ENVIRONMENT},
    )


def _graph(config: PretrainedConfig) -> dict[str, Any]:
    shaping = {name: value for name, value in config.to_dict().items() if name not in _NOT_IN_GRAPH}
    return {**shaping, "num_labels": config.num_labels}


_REPORT_FIELDS = {each.name for each in fields(LatencyReport)}


class LatencyStore:
    """A folder of reports, one file a key, so that processes need no lock and a kill breaks nothing.

    Attributes:
        folder: The folder; made when the first report is put there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> LatencyReport | None:
        """The report of a key, if it was measured before, by this version of the package."""
        found = read_json(self.folder / f"{key}.json")
        return LatencyReport.from_dict(found) if found and found.keys() == _REPORT_FIELDS else None

    def put(self, key: str, report: LatencyReport) -> None:
        """Keep a report."""
        write_json(self.folder / f"{key}.json", report.to_dict())
