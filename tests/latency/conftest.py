"""An exported tiny model, and what times models without a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_kdnas.latency.export import export_model, get_exporter


@pytest.fixture(scope="session")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of a tiny BERT, in a folder that PyTorch and Optimum load."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    folder = tmp_path_factory.mktemp("student")
    model.save_pretrained(folder)
    return export_model(model, folder, exporter=get_exporter()).path


@dataclass
class FakeMachine:
    """Sessions that take as long as they are told, on a clock that nothing else moves.

    Attributes:
        milliseconds: Of a run, by the model file's name.
        slower: What a run's time is multiplied by after each run.
        runs: Names, in the order of their runs.
    """

    milliseconds: dict[str, float]
    slower: float = 1.0
    now: float = 0.0
    runs: list[str] = field(default_factory=list)

    def session(self, path: Path) -> SimpleNamespace:
        inputs = [
            SimpleNamespace(name=name, type="tensor(int64)") for name in ("input_ids", "attention_mask")
        ]
        return SimpleNamespace(get_inputs=lambda: inputs, run=lambda names, feed: self._run(path.stem))

    def _run(self, name: str) -> None:
        self.runs.append(name)
        self.now += self.milliseconds[name] / 1000
        self.milliseconds = {each: value * self.slower for each, value in self.milliseconds.items()}


@pytest.fixture
def fake_machine(monkeypatch: pytest.MonkeyPatch):
    """Put a FakeMachine in the place of ONNX Runtime and the clock."""
    from hf_kdnas.latency import runs
    from hf_kdnas.latency.target import LatencyTarget

    def install(milliseconds: dict[str, float], slower: float = 1.0) -> FakeMachine:
        machine = FakeMachine(milliseconds, slower)
        monkeypatch.setattr(LatencyTarget, "session", lambda self, path: machine.session(Path(path)))
        monkeypatch.setattr(runs.time, "perf_counter", lambda: machine.now)
        return machine

    return install
