from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_kdnas.latency import store as store_module
from hf_kdnas.latency.measure import LatencyReport
from hf_kdnas.latency.store import LatencyStore, latency_key
from hf_kdnas.latency.target import LatencyTarget

REPORT = LatencyReport(
    median_ms=2.0,
    iqr_ms=0.1,
    interval_ms=(1.9, 2.1),
    ratio=0.25,
    ratio_interval=(0.24, 0.26),
    reference_median_ms=8.0,
    rounds=30,
    target={},
    device="a machine",
    onnxruntime="1",
)


def key(config, target: LatencyTarget | None = None, reference=None) -> str:
    return latency_key(config, target or LatencyTarget(), reference or config, "Head", "optimum")


def changed(config, **fields):
    return type(config)(**{**config.to_dict(), **fields})


def test_what_was_put_is_found(tmp_path: Path) -> None:
    store = LatencyStore(tmp_path / "latency")
    assert store.get("abc") is None
    store.put("abc", REPORT)
    assert LatencyStore(tmp_path / "latency").get("abc") == REPORT
    assert store.get("abd") is None


def test_a_report_of_an_older_package_counts_as_not_measured(tmp_path: Path) -> None:
    store = LatencyStore(tmp_path)
    store.put("abc", REPORT)
    fields = json.loads((tmp_path / "abc.json").read_text())
    del fields["iqr_ms"]
    (tmp_path / "abc.json").write_text(json.dumps(fields))
    assert store.get("abc") is None


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 2},
        {"hidden_size": 16},
        {"num_attention_heads": 2},
        {"intermediate_size": 32},
        {"hidden_act": "relu"},
        {"vocab_size": 130},
        {"max_position_embeddings": 128},
        {"num_labels": 5, "id2label": None, "label2id": None},
        {"a_field_of_some_other_family": 3},
    ],
)
def test_another_graph_has_another_key(tiny_bert_config, fields: dict) -> None:
    other = changed(tiny_bert_config, **fields)
    assert key(other) != key(tiny_bert_config)
    assert key(tiny_bert_config, reference=other) != key(tiny_bert_config)


def test_names_and_training_settings_leave_the_key(tiny_bert_config) -> None:
    other = changed(
        tiny_bert_config,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
        hidden_dropout_prob=0.5,
        problem_type="regression",
        _name_or_path="somewhere/else",
    )
    assert key(other) == key(tiny_bert_config)


def test_dropout_leaves_the_key_whatever_a_family_calls_it(tiny_config) -> None:
    names = [name for name in tiny_config.to_dict() if "dropout" in name]
    assert len(names) >= 2
    assert key(changed(tiny_config, **dict.fromkeys(names, 0.5))) == key(tiny_config)


@pytest.mark.parametrize(
    "fields", [{"threads": 2}, {"batch_size": 8}, {"sequence_length": 64}, {"precision": "int8"}]
)
def test_another_target_has_another_key(tiny_bert_config, fields: dict) -> None:
    assert key(tiny_bert_config, LatencyTarget(**fields)) != key(tiny_bert_config)


@pytest.mark.parametrize("name", ["onnxruntime", "transformers", "cpu_flags"])
def test_another_environment_has_another_key(
    tiny_bert_config, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(tiny_bert_config)
    here = store_module.environment()
    monkeypatch.setattr(store_module, "environment", lambda: {**here, name: "another"})
    assert key(tiny_bert_config) != before


def test_another_device_has_another_key(tiny_bert_config, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(tiny_bert_config)
    monkeypatch.setattr(LatencyTarget, "device", "another processor, 2 cores")
    assert key(tiny_bert_config) != before


WRITER = """
import sys
from hf_kdnas.latency.measure import LatencyReport
from hf_kdnas.latency.store import LatencyStore
from pathlib import Path
store = LatencyStore(Path(sys.argv[1]))
fields = {field}
print("ready", flush=True)
sys.stdin.readline()
while True:
    store.put("shared", LatencyReport.from_dict(fields))
"""


def test_a_reader_never_sees_part_of_a_report_whatever_is_killed(tmp_path: Path) -> None:
    script = WRITER.replace("{field}", repr(REPORT.to_dict()))
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"ready\n"
            writer.stdin.write(b"\n")
            writer.stdin.flush()
        store = LatencyStore(tmp_path)
        deadline = time.monotonic() + 60
        while store.get("shared") is None:
            assert time.monotonic() < deadline
        seen = [store.get("shared") for _ in range(300)]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert seen == [REPORT] * 300
    store.put("shared", REPORT)
    assert store.get("shared") == REPORT
