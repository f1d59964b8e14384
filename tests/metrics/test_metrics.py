"""Metrics against their definitions, and as `evaluate` modules."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from hf_kdnas import metrics
from hf_kdnas.errors import InvalidInput

FOLDER = Path(metrics.__file__).parent


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("accuracy", [0, 1, 1, 0], [0, 1, 0, 0], 3 / 4),
        ("f1", [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 2 * 2 / (2 * 2 + 1 + 1)),  # tp 2, fp 1, fn 1
        ("f1", [0, 0], [1, 1], 0.0),
        # (tp tn - fp fn) / sqrt(...), with tp 2, tn 1, fp 1, fn 1
        ("matthews", [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], (2 - 1) / math.sqrt(3 * 3 * 2 * 2)),
        ("pearson", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1.0),
        ("pearson", [1.0, 2.0, 4.0], [1.0, 2.0, 3.0], 9 / math.sqrt(84)),
        ("spearman", [1.0, 2.0, 40.0], [1.0, 2.0, 3.0], 1.0),
        ("spearman", [3.0, 2.0, 1.0], [1.0, 2.0, 30.0], -1.0),
        ("pearson", [2.0, 2.0, 2.0], [1.0, 2.0, 3.0], 0.0),
        ("spearman", [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], 0.0),
    ],
)
def test_values(name: str, predictions: list[float], references: list[float], expected: float) -> None:
    assert metrics.compute(name, predictions, references) == pytest.approx(expected)


def test_f1_of_several_classes_is_their_mean() -> None:
    # F1 by class: 2/3 (tp 1, fn 1), 2/3 (tp 1, fp 1), 1
    value = metrics.compute("f1", [0, 1, 1, 2], [0, 0, 1, 2], average="macro")
    assert value == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_each_is_a_module_that_evaluate_loads_offline(name: str) -> None:
    import evaluate

    loaded = evaluate.load(str(FOLDER / f"{name}.py"))
    assert loaded.compute(predictions=[0, 1, 1], references=[0, 1, 1]) == {name: pytest.approx(1.0)}


def test_a_users_own_metric_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kdnas_own_metric.py").write_text(
        "class Share:\n"
        "    def compute(self, predictions, references):\n"
        "        return {'share': sum(predictions) / len(predictions)}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert metrics.compute("kdnas_own_metric:Share", [1, 0, 1, 1], [0, 0, 0, 0]) == 0.75


def test_an_evaluate_module_by_path() -> None:
    assert metrics.compute(str(FOLDER / "accuracy.py"), [0, 1], [0, 0]) == 0.5


@pytest.mark.parametrize("name", ["acuracy", "no_such_module:Metric", "hf_kdnas.metrics:Nothing", "./no.py"])
def test_what_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        metrics.load_metric(name)
    assert caught.value.given == name


def test_importing_the_package_loads_no_metric() -> None:
    code = "import sys, hf_kdnas.metrics; sys.exit(bool({'datasets', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
