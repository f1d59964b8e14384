"""Metrics against their definitions and the libraries, and as `evaluate` modules."""

from __future__ import annotations

import ast
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics

from hf_kdnas import metrics
from hf_kdnas.errors import InvalidInput, MissingPackage

FOLDER = Path(metrics.__file__).parent

# What each metric computes exactly, by hand.
EXAMPLES: dict[str, tuple[list[Any], list[Any], dict[str, float]]] = {
    "accuracy": ([0, 1, 1, 0], [0, 1, 0, 0], {"accuracy": 3 / 4}),
    "f1": ([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], {"f1": 2 * 2 / (2 * 2 + 1 + 1)}),  # tp 2, fp 1, fn 1
    # (tp tn - fp fn) / sqrt(...), with tp 2, tn 1, fp 1, fn 1
    "matthews": (
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        {"matthews": (2 - 1) / math.sqrt(3 * 3 * 2 * 2)},
    ),
    "pearson": ([1.0, 2.0, 4.0], [1.0, 2.0, 3.0], {"pearson": 9 / math.sqrt(84)}),
    "spearman": ([1.0, 2.0, 40.0], [1.0, 2.0, 3.0], {"spearman": 1.0}),
    # Of 3 true spans (2 names, 1 place) and 2 predicted ones, 1 is right: a name cut short is wrong.
    "seqeval": (
        [["B-PER", "I-PER", "O", "O"], ["B-PER", "O", "O"]],
        [["B-PER", "I-PER", "O", "B-LOC"], ["B-PER", "I-PER", "O"]],
        {"f1": 2 * 1 / (2 + 3), "precision": 1 / 2, "recall": 1 / 3},
    ),
    # "warm ending" is right, "sad plot" shares 1 of 1 and 2 words, no answer is right, then wrong.
    "squad": (
        ["The warm ending!", "a plot", "", "film"],
        [["warm ending"], ["story", "sad plot"], [], []],
        {"f1": (1 + 2 / 3 + 1 + 0) / 4, "exact_match": 2 / 4},
    ),
}


def scores(name: str, predictions: Any, references: Any, **options: Any) -> dict[str, float]:
    metric = metrics.load_metric(name)
    metric.keep_in_memory = True
    return metric.compute(predictions=predictions, references=references, **options)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_values(name: str) -> None:
    predictions, references, expected = EXAMPLES[name]
    assert scores(name, predictions, references) == pytest.approx(expected)
    assert metrics.compute(name, predictions, references) == pytest.approx(next(iter(expected.values())))


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("f1", [0, 0], [1, 1], 0.0),
        ("f1", [0, 0], [0, 0], 0.0),
        ("matthews", [1, 1], [0, 1], 0.0),
        ("pearson", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1.0),
        ("spearman", [3.0, 2.0, 1.0], [1.0, 2.0, 30.0], -1.0),
        ("pearson", [2.0, 2.0, 2.0], [1.0, 2.0, 3.0], 0.0),
        ("spearman", [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], 0.0),
        ("seqeval", [["O", "O"], []], [["O", "O"], []], 0.0),
        ("seqeval", [[], ["B-PER", "O"]], [[], ["B-PER", "O"]], 1.0),
        ("squad", [""], [[]], 1.0),
    ],
)
def test_corner_cases(name: str, predictions: list[Any], references: list[Any], expected: float) -> None:
    assert metrics.compute(name, predictions, references) == pytest.approx(expected)


def test_class_metrics_are_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    true, found = draw.integers(0, 2, 200), draw.integers(0, 2, 200)
    assert scores("accuracy", found, true)["accuracy"] == sklearn_metrics.accuracy_score(true, found)
    assert scores("matthews", found, true)["matthews"] == sklearn_metrics.matthews_corrcoef(true, found)
    assert scores("f1", found, true)["f1"] == sklearn_metrics.f1_score(true, found)
    true, found = draw.integers(0, 4, 200), draw.integers(0, 4, 200)
    for average in ("micro", "macro", "weighted"):
        expected = sklearn_metrics.f1_score(true, found, average=average)
        assert scores("f1", found, true, average=average)["f1"] == expected


def test_score_metrics_are_scipys() -> None:
    draw = np.random.default_rng(0)
    true = draw.normal(size=200)
    found = true + draw.normal(size=200)
    assert scores("pearson", found, true)["pearson"] == pytest.approx(stats.pearsonr(true, found).statistic)
    found = found.round()  # with ties
    expected = stats.spearmanr(true, found).statistic
    assert scores("spearman", found, true)["spearman"] == pytest.approx(expected)


def test_f1_of_several_classes_is_their_mean() -> None:
    # F1 by class: 2/3 (tp 1, fn 1), 2/3 (tp 1, fp 1), 1
    value = metrics.compute("f1", [0, 1, 1, 2], [0, 0, 1, 2], average="macro")
    assert value == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        ("micro", 2 * 3 / (2 * 3 + 1 + 1)),  # tp 3, fp 1, fn 1 over all decisions
        ("macro", (1 + 0 + 2 / 3) / 3),  # the classes alone
        ("weighted", (2 * 1 + 1 * 0 + 1 * 2 / 3) / 4),
        ("samples", (2 / 3 + 1 + 2 / 3 + 0) / 4),
    ],
)
def test_f1_of_rows_with_several_classes(average: str, expected: float) -> None:
    """Class 0 is right twice; class 1 is true once and never found; class 2 once right, once wrong."""
    found = [[1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]
    true = [[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert metrics.compute("f1", found, true, average=average) == pytest.approx(expected)
    theirs = sklearn_metrics.f1_score(np.array(true), np.array(found), average=average, zero_division=0)
    assert scores("f1", np.array(found), torch.tensor(true), average=average)["f1"] == pytest.approx(theirs)


def test_spans_are_seqevals() -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score

    draw = np.random.default_rng(0)
    tags = np.array(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-LOC", "S-PER", "B"])
    true = [tags[draw.integers(0, len(tags), length)].tolist() for length in (5, 1, 12, 30)]
    found = [[tag if draw.random() < 0.7 else "O" for tag in row] for row in true]
    assert scores("seqeval", found, true) == pytest.approx(
        {
            "f1": f1_score(true, found),
            "precision": precision_score(true, found),
            "recall": recall_score(true, found),
        }
    )


@pytest.mark.parametrize(
    ("prediction", "answers", "f1", "exact"),
    [
        ("The  Cat,\tsat.", ["cat sat"], 1, 1),  # case, punctuation, articles, white space
        ("theatre", ["atre"], 0, 0),  # an article is a word of its own
        ("a.m.", ["am"], 1, 1),  # punctuation goes before articles: "a" is none here
        ("new-york", ["new york"], 0, 0),  # punctuation leaves no gap
        ("“cat”", ["cat"], 0, 0),  # ASCII punctuation alone
        ("Élan", ["élan"], 1, 1),
        ("cat cat sat", ["cat sat sat"], 2 / 3, 0),  # a word counts as often as both have it
        ("big red cat", ["cat", "red cat"], 4 / 5, 0),  # the nearest of the answers
        ("the", [], 1, 1),  # nothing but articles is no answer
        ("", ["cat"], 0, 0),
        ("", ["the", "cat"], 0, 0),  # an answer of articles alone doesn't count
        ("", ["the"], 1, 1),
        ("cat", [], 0, 0),
    ],
)
def test_answers_as_squads_script_counts(
    prediction: str, answers: list[str], f1: float, exact: float
) -> None:
    expected = {"f1": f1, "exact_match": exact}
    assert scores("squad", [prediction], [answers]) == pytest.approx(expected)


def test_each_is_a_module_that_evaluate_loads_offline(tmp_path: Path) -> None:
    paths = {name: str(FOLDER / f"{name}.py") for name in metrics.METRICS}
    rows = {
        path: {"predictions": EXAMPLES[name][0], "references": EXAMPLES[name][1]}
        for name, path in paths.items()
    }
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("load_offline.py")), json.dumps(rows)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, path in paths.items():
        assert found[path] == pytest.approx(EXAMPLES[name][2])


def test_the_example_of_the_docs_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    *lines, call, said = code.strip().splitlines()
    scope: dict[str, Any] = {}
    exec("\n".join([*lines, f"found = {call}"]), scope)
    assert scope["found"] == ast.literal_eval(said.removeprefix("# "))


def test_rows_can_come_one_by_one() -> None:
    metric = metrics.load_metric("squad")
    predictions, references, expected = EXAMPLES["squad"]
    metric.add_batch(predictions=predictions[:2], references=references[:2])
    metric.add(prediction=predictions[2], reference=references[2])
    metric.add(prediction=predictions[3], reference=references[3])
    assert metric.compute() == pytest.approx(expected)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_rows_are_needed_as_many_of_both(name: str) -> None:
    predictions, references, expected = EXAMPLES[name]
    metric = metrics.load_metric(name)
    for bad, field in (
        ({"predictions": predictions[1:], "references": references}, "predictions"),
        ({"predictions": [], "references": []}, "predictions"),
        ({"predictions": predictions, "references": None}, "references"),
    ):
        with pytest.raises(InvalidInput) as caught:
            metric.compute(**bad)
        assert caught.value.field == field
    # What was refused leaves nothing behind.
    assert metric.compute(predictions=predictions, references=references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "predictions", "references", "message"),
    [
        ("accuracy", [0.7, 0.2], [1, 0], "predictions: got '0.7 in row 0'"),
        ("accuracy", [1, 0], [1, -100], "references: got '-100 in row 1'.*without a label"),
        ("accuracy", [math.nan, 0.0], [1, 0], "predictions: got 'nan in row 0'"),
        ("accuracy", [math.inf, 0.0], [1, 0], "predictions: got 'inf in row 0'"),
        ("accuracy", [[0.1, 0.9], [0.8, 0.2]], [1, 0], r"\(2, 2\).*argmax of logits"),
        ("matthews", ["yes", "no"], [1, 0], "predictions: .*a class id"),
        ("pearson", [0.5, math.nan], [1.0, 2.0], "predictions: got 'nan in row 1'.*finite"),
        ("spearman", [0.5, 0.6], [1.0, math.inf], "references: got 'inf in row 1'.*finite"),
        ("pearson", [[0.5], [0.6]], [1.0, 2.0], r"\(2, 1\).*Flatten"),
        ("pearson", [0.5, None], [1.0, 2.0], "predictions: got 'an array of object"),
        ("f1", [[1, 0], [1]], [[1, 0], [1, 1]], "predictions: got 'rows of different lengths'"),
        ("f1", [[0.7, 0.2]], [[1, 0]], "predictions: got .*in row 0'; each row has a 0 or 1"),
        ("f1", [[1, 0]], [[1, math.nan]], "references: got .*in row 0'; each row has a 0 or 1"),
        ("f1", [[1, 0, 1]], [[1, 0]], "predictions: got '3 classes'; the references have 2"),
        ("f1", [1, 0], [[1, 0], [0, 1]], "predictions: .*each row has a 0 or 1 for each class"),
        (
            "f1",
            [[1, 0], [0, 1]],
            [[1, 0], [0, 1]],
            "average: got 'binary'; .*micro, macro, weighted, samples",
        ),
        ("f1", [0, 1, 2], [0, 1, 1], "average: got 'binary'; for these rows allowed are micro"),
        ("squad", ["cat"], ["cat"], "references: .*each row is a list of texts"),
        ("squad", [math.nan], [["cat"]], "predictions: got 'nan in row 0'; each row is a text"),
        ("squad", ["cat"], [["cat", None]], "references: .*each row is a list of texts"),
        ("seqeval", [["O", "O"]], [["O"]], "predictions: got '2 tags in row 0'; its references are 1"),
        ("seqeval", [["NOUN"]], [["O"]], "predictions: got \"'NOUN' in row 0\"; tags are O, and B-"),
        ("seqeval", [["O"]], [[math.nan]], "references: got 'nan in row 0'; tags are O"),
        ("seqeval", ["O"], ["O"], "predictions: got 'O'; each row is a list of tags"),
        ("seqeval", [1, 2], [1, 2], "predictions: got 1; each row is a list of tags"),
    ],
)
def test_rows_that_can_not_be_scored_are_refused(
    name: str, predictions: list[Any], references: list[Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        scores(name, predictions, references)


def test_an_average_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"average: got 'mean'; .*binary, micro, macro, weighted"):
        metrics.compute("f1", [0, 1], [0, 1], average="mean")


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_model_that_diverged_scores_no_number_in_a_search(wrong: float) -> None:
    assert math.isnan(metrics.compute("pearson", [0.5, wrong, 0.7], [1.0, 2.0, 3.0]))


def test_where_seqeval_is_missing_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seqeval", None)
    for name in ("seqeval.metrics.sequence_labeling", "seqeval.metrics", "hf_kdnas.metrics.seqeval"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingPackage, match=r'pip install "hf-kdnas\[seqeval\]"'):
        metrics.load_metric("seqeval")


def test_a_users_own_metric_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kdnas_own_metric.py").write_text(
        "class Share:\n"
        "    def compute(self, predictions, references):\n"
        "        return {'share': sum(predictions) / len(predictions)}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert metrics.compute("kdnas_own_metric:Share", [1, 0, 1, 1], [0, 0, 0, 0]) == 0.75


OWN = """
class Several:
    def compute(self, predictions, references):
        return {'cost': 0.5, 'per_class': [0.25, 0.75]}

class Nothing: pass

class Options:
    def __init__(self, option): pass
"""


def test_of_a_users_own_metric_the_first_value_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kdnas_own_metrics.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "kdnas_broken_metric.py").write_text("class Cost(:", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert metrics.compute("kdnas_own_metrics:Several", [1], [0]) == 0.5
    for name, message in (
        ("kdnas_own_metrics:Nothing", "no method compute"),
        ("kdnas_own_metrics:Options", "TypeError"),
        ("kdnas_broken_metric:Cost", "SyntaxError"),
        ("", "metrics are accuracy"),
    ):
        with pytest.raises(InvalidInput, match=message):
            metrics.load_metric(name)


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
