"""Export by Optimum (optimum-onnx), on the Transformers 4.57 line."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hf_kdnas.latency.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Optimum's name of a task, by the end of the model's class.
TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "Model": "feature-extraction",
}


class OptimumExporter:
    """Optimum's low-level `export`, in this process."""

    name = "optimum"

    @staticmethod
    def available() -> bool:
        """Whether optimum-onnx is installed."""
        return find_spec("optimum") is not None and find_spec("optimum.exporters.onnx") is not None

    def export(self, model: PreTrainedModel, path: Path) -> None:
        """Write a model with a task head as ONNX.

        Args:
            model: On the CPU, in evaluation mode.
            path: The file to write.
        """
        with quiet():
            from optimum.exporters.onnx import export
            from optimum.exporters.tasks import TasksManager

            task = next(task for head, task in TASKS.items() if type(model).__name__.endswith(head))
            make_config = TasksManager.get_exporter_config_constructor(
                "onnx", model, task=task, library_name="transformers"
            )
            export(model, make_config(model.config), path)
