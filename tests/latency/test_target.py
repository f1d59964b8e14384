from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from hf_kdnas.errors import InvalidInput, MissingPackage
from hf_kdnas.latency import target as target_module
from hf_kdnas.latency.target import LatencyTarget, describe_target


def test_a_provider_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(InvalidInput, match="CPUExecutionProvider") as caught:
        LatencyTarget(provider="NoSuchProvider")
    assert caught.value.given == "NoSuchProvider"


@pytest.mark.parametrize("name", ["threads", "batch_size", "sequence_length", "warmup", "rounds"])
def test_numbers_are_positive(name: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        LatencyTarget(**{name: 0})


def test_precision_is_one_that_can_be_measured() -> None:
    with pytest.raises(InvalidInput, match="fp32 or int8"):
        LatencyTarget(precision="fp16")


def test_without_onnxruntime_the_error_gives_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackage, match=r'pip install "hf-kdnas\[onnxruntime\]"'):
        LatencyTarget()


def test_a_session_has_the_threads_of_the_target(onnx_model) -> None:
    options = LatencyTarget(threads=2).session(onnx_model).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_a_provider_that_onnxruntime_quietly_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fallen_back = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda name, value: None),
        InferenceSession=lambda *args, **kwargs: SimpleNamespace(
            get_providers=lambda: ["CPUExecutionProvider"]
        ),
    )
    monkeypatch.setattr(target_module, "import_onnxruntime", lambda: fallen_back)
    target = LatencyTarget(provider="CUDAExecutionProvider")
    with pytest.raises(InvalidInput, match="fell back to CPUExecutionProvider"):
        target.session("model.onnx")


def test_the_device_is_the_one_that_the_provider_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"device": "A GPU", "cpu": "A processor", "cores": "2"}
    monkeypatch.setattr(target_module, "environment", lambda: here)
    monkeypatch.setattr(
        target_module,
        "import_onnxruntime",
        lambda: SimpleNamespace(
            get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        ),
    )
    assert LatencyTarget().device == "A processor, 2 cores"
    assert LatencyTarget(provider="CUDAExecutionProvider").device == "A GPU"


def test_a_target_of_another_machine_can_be_described() -> None:
    fields = {**vars(LatencyTarget()), "provider": "OtherExecutionProvider", "threads": 4}
    assert describe_target(fields) == "OtherExecutionProvider, 4 threads, batch 1, 128 tokens"
    assert str(LatencyTarget()) == "CPUExecutionProvider, 1 thread, batch 1, 128 tokens, fp32"
