from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_kdnas.errors import InvalidInput
from hf_kdnas.latency.measure import LatencyReport, measure, median_interval
from hf_kdnas.latency.target import LatencyTarget

STUDENT, TEACHER = Path("student.onnx"), Path("teacher.onnx")


def test_median_and_ratio_of_known_times(fake_machine) -> None:
    fake_machine({"student": 2.0, "teacher": 8.0})
    report = measure(STUDENT, LatencyTarget(rounds=7), reference=TEACHER)
    assert report.median_ms == pytest.approx(2.0)
    assert report.reference_median_ms == pytest.approx(8.0)
    assert report.ratio == pytest.approx(0.25)
    assert report.speedup == pytest.approx(4.0)
    assert report.iqr_ms == pytest.approx(0.0, abs=1e-9)
    assert report.rounds == 7


def test_a_machine_that_slows_down_hardly_moves_the_ratio(fake_machine) -> None:
    fake_machine({"student": 4.0, "teacher": 16.0}, slower=1.01)
    report = measure(STUDENT, LatencyTarget(rounds=40), reference=TEACHER)
    assert report.iqr_ms > 2
    assert report.ratio == pytest.approx(0.25, rel=0.03)
    low, high = report.ratio_interval
    assert high - low < 1e-6


def test_models_run_in_turn_each_settled_before_it_is_timed(fake_machine) -> None:
    machine = fake_machine({"student": 1.0, "teacher": 8.0})
    target = LatencyTarget(rounds=3, warmup=2)
    measure(STUDENT, target, reference=TEACHER)
    # At least 2 ms unmeasured: two runs of the student, one of the teacher.
    turn = ["student"] * 3 + ["teacher"] * 2
    assert machine.runs[-3 * len(turn) :] == turn * 3
    assert Counter(machine.runs[: -3 * len(turn)]) == {"student": 3, "teacher": 3}


def test_without_a_reference_the_ratio_is_one(fake_machine) -> None:
    fake_machine({"student": 2.0})
    report = measure(STUDENT, LatencyTarget(rounds=5))
    assert (report.ratio, report.ratio_interval, report.reference_median_ms) == (1.0, (1.0, 1.0), None)
    assert "speed-up" not in str(report)


def test_a_report_tells_what_was_measured(fake_machine) -> None:
    fake_machine({"student": 2.0, "teacher": 8.0})
    text = str(measure(STUDENT, LatencyTarget(rounds=5), reference=TEACHER))
    for part in ("2.000 ms", "8.000 ms", "4.00 times", "CPUExecutionProvider, 1 thread", "onnxruntime"):
        assert part in text


def test_a_report_goes_through_json(fake_machine) -> None:
    fake_machine({"student": 2.0, "teacher": 8.0})
    report = measure(STUDENT, LatencyTarget(rounds=5), reference=TEACHER)
    assert LatencyReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize(
    ("count", "low", "high"), [(10, 2, 9), (20, 6, 15), (30, 10, 21), (50, 18, 33), (100, 40, 61)]
)
def test_median_interval_has_the_ranks_of_the_tables(count: int, low: int, high: int) -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(1, count + 1))
    assert median_interval(shuffled) == (low, high)


def test_median_interval_covers_the_median_of_a_skewed_distribution() -> None:
    samples = np.random.default_rng(0).lognormal(sigma=2.0, size=(2000, 30))
    intervals = np.array([median_interval(sample) for sample in samples])
    covered = ((intervals[:, 0] <= 1) & (intervals[:, 1] >= 1)).mean()
    assert 0.94 < covered < 0.98


def test_a_real_model_is_measured_on_the_inputs_of_the_target(onnx_model: Path) -> None:
    target = LatencyTarget(batch_size=2, sequence_length=8, rounds=5, warmup=1)
    report = measure(onnx_model, target, reference=onnx_model)
    low, high = report.interval_ms
    assert 0 < low <= report.median_ms <= high
    assert report.target == vars(target)
    assert report.device == target.device


@pytest.mark.parametrize("threads", [1, 2])
def test_a_pytorch_model_is_measured_on_the_same_inputs(
    onnx_model: Path, tiny_bert_config, make_model, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    model, seen, before = make_model(tiny_bert_config).train(), [], torch.get_num_threads()

    def ran(module, inputs, options, output) -> None:
        seen.append((options["input_ids"].shape, torch.get_num_threads(), module.training))

    model.register_forward_hook(ran, with_kwargs=True)
    target = LatencyTarget(threads=threads, batch_size=2, sequence_length=12, rounds=5)
    report = measure(model, target, reference=onnx_model)
    assert {*seen} == {((2, 12), threads, False)}
    assert report.median_ms > 0
    assert report.reference_median_ms > 0
    assert torch.get_num_threads() == before


def test_rows_longer_than_the_model_takes_are_refused_in_one_message(
    onnx_model: Path, capfd: pytest.CaptureFixture
) -> None:
    with pytest.raises(InvalidInput, match="1 x 65 tokens"):
        measure(onnx_model, LatencyTarget(sequence_length=65))
    assert capfd.readouterr().err == ""


def test_no_row_is_all_padding_of_any_family(
    onnx_model: Path, tiny_bert_config, tiny_roberta_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = []
    real = LatencyTarget().session(onnx_model)

    def run(names, inputs):
        fed.append(inputs["input_ids"])
        return real.run(names, inputs)

    session = SimpleNamespace(get_inputs=real.get_inputs, run=run)
    monkeypatch.setattr(LatencyTarget, "session", lambda self, path: session)
    measure(onnx_model, LatencyTarget(sequence_length=8, rounds=5, warmup=1))
    assert fed
    paddings = {config.pad_token_id for config in (tiny_bert_config, tiny_roberta_config)}
    assert not any(np.isin(ids, list(paddings)).any() for ids in fed)


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [("pixels", "INT64", "asks for pixels"), ("input_ids", "FLOAT", "is tensor.float")],
)
def test_a_model_that_is_not_for_text_is_refused(tmp_path: Path, name: str, kind: str, told: str) -> None:
    from onnx import TensorProto, helper, save

    given, out = (
        helper.make_tensor_value_info(each, TensorProto.DataType.Value(kind), [1, 3])
        for each in (name, "out")
    )
    graph = helper.make_graph([helper.make_node("Identity", [name], ["out"])], "g", [given], [out])
    save(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]),
        tmp_path / "model.onnx",
    )
    with pytest.raises(InvalidInput, match=told):
        measure(tmp_path / "model.onnx", LatencyTarget())
