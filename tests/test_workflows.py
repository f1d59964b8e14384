"""The spine from end to end, on a tiny model."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertModel

from hf_kdnas import cli, load_recipe, workflows
from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.signals import TeacherSignals
from hf_kdnas.plan import plan_search
from hf_kdnas.run import read_json
from hf_kdnas.search.reward import reward
from hf_kdnas.stages import Stages

# Of a search, what tests can do without that are not about it.
SHORT = ("--search.episodes", "1", "--search.baselines", "[]", "--export.int8", "false")


def _search(project: Path, *more: str) -> int:
    return cli.main(["search", "--config", str(project / "recipe.yaml"), *more])


@pytest.fixture
def finished(tiny_project: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The run folder of a finished search."""
    assert _search(tiny_project) == 0
    return tiny_project / "run"


@pytest.fixture
def again(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that made the tiny run, in a copy of it and of its cache."""
    cache = shutil.copytree(tiny_run.parent / "kdnas-cache", tmp_path / "cache")
    run = shutil.copytree(tiny_run, tmp_path / "run")
    monkeypatch.setenv("KDNAS_CACHE", str(cache))
    arguments = ["--config", str(tiny_run.parent / "recipe.yaml"), "--student", "2L-16H-32F-2A-gelu"]
    return ["distill", *arguments, "--output_dir", str(run)]


def test_a_search_leaves_everything_that_was_promised(tiny_project: Path) -> None:
    assert _search(tiny_project, "--search.beta", "0.3") == 0
    finished = tiny_project / "run"
    for name in (
        "student/config.json",
        "student/model.safetensors",
        "student/tokenizer.json",
        "student/onnx/model.onnx",
        "student/onnx/model_int8.onnx",
        "student/README.md",
        "report.html",
        "README.md",
        "recipe.yaml",
    ):
        assert (finished / name).stat().st_size > 0, name
    assert len(list(finished.glob("search/kdnas-*/study.log"))) == 1
    results = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    for role in ("teacher", "student"):
        assert {"quality", "latency_ms", "parameters"} <= results[role].keys()
    assert results["student"]["parameters"] < results["teacher"]["parameters"]
    assert results["student"]["pytorch"]["median_ms"] > 0
    assert results["retained"] == results["student"]["quality"] / results["teacher"]["quality"]
    assert len(results["candidates"]) == 6
    assert len({each["architecture"] for each in results["candidates"]}) == 6
    assert [each["name"] for each in results["baselines"]] == ["every-second-layer"]
    _check_latencies(results, beta=0.3)
    assert {"teacher", "signals", "search", "finalists", "export"} <= results["seconds"].keys()


def _check_latencies(results: dict[str, Any], beta: float) -> None:
    """That latencies, and what follows from them, are those that were measured."""
    latency = results["student"]["latency"]
    assert results["speedup"] == 1 / latency["ratio"]
    assert results["student"]["latency_ms"] == latency["median_ms"]
    assert results["teacher"]["latency_ms"] == latency["reference_median_ms"]
    reports = results["latency_reports"]
    for each in results["candidates"]:
        assert each["ratio"] == reports[each["architecture"]]["ratio"]
        assert each["reward"] == pytest.approx(reward(each["quality"], each["ratio"], -0.06, beta))
    for each in (*results["finalists"], *results["baselines"]):
        assert each["ratio"] == reports[each["architecture"]]["ratio"]
        assert each["reward"] == pytest.approx(reward(each["selection_quality"], each["ratio"], -0.06, beta))
        assert each["speedup"] == 1 / each["ratio"]
    best = max(results["finalists"], key=lambda each: each["reward"])
    assert [each for each in results["finalists"] if each["winner"]] == [best]


def test_the_same_command_does_nothing_twice(finished: Path, tiny_project: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "students").rglob("*.safetensors")}
    winner = read_json(finished / "results.json")["student"]
    assert _search(tiny_project) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = read_json(finished / "results.json")["student"]
    assert (again["architecture"], again["quality"]) == (winner["architecture"], winner["quality"])
    assert again["latency"] == winner["latency"]


@pytest.mark.usefixtures("steady_latency")
def test_a_changed_recipe_goes_on_with_what_is_still_true(finished: Path, tiny_project: Path) -> None:
    before = read_json(finished / "results.json")
    assert _search(tiny_project, "--search.episodes", "3") == 2
    assert _search(tiny_project, "--search.episodes", "3", "--resume") == 0
    after = read_json(finished / "results.json")
    assert after["candidates"][:6] == before["candidates"]
    assert len(after["candidates"]) == 9
    students = set((finished / "students").iterdir())

    longer = ("--distillation.training.epochs", "3", "--search.episodes", "3", "--resume")
    assert _search(tiny_project, *longer) == 0
    again = read_json(finished / "results.json")
    assert again["candidates"] == after["candidates"]
    made = set((finished / "students").iterdir()) - students
    assert len(made) == len(again["finalists"]) + len(again["baselines"])


@pytest.mark.usefixtures("steady_latency")
def test_what_the_report_is_about_chooses_nothing(tiny_project: Path) -> None:
    head, *lines = (tiny_project / "reviews.csv").read_text(encoding="utf-8").splitlines()
    files, swapped = tiny_project / "files", {"rotten": "fresh", "fresh": "rotten"}
    files.mkdir()
    (files / "train.csv").write_text("\n".join([head, *lines[60:]]), encoding="utf-8")
    turned = [f"{text},{swapped[label]}" for text, _, label in (line.rpartition(",") for line in lines[:60])]
    data = ("--data.path", str(files), "--data.reporting_split", "validation")
    found = []
    for name, reported in (("right", lines[:60]), ("wrong", turned)):
        (files / "validation.csv").write_text("\n".join([head, *reported]), encoding="utf-8")
        assert _search(tiny_project, *SHORT, *data, "--output_dir", str(tiny_project / name)) == 0
        found.append(read_json(tiny_project / name / "results.json"))
    right, wrong = found
    tried, chosen = ("architecture", "quality", "reward", "state"), ("architecture", "selection_quality")
    for results in found:
        results["candidates"] = [[each[name] for name in tried] for each in results["candidates"]]
        results["finalists"] = [[each[name] for name in chosen] for each in results["finalists"]]
    for name in ("candidates", "finalists"):
        assert right[name] == wrong[name]
    for name in chosen:
        assert right["student"][name] == wrong["student"][name]
    for role in ("teacher", "student"):
        assert right[role]["quality"] == pytest.approx(1 - wrong[role]["quality"])
        assert right[role]["quality"] != wrong[role]["quality"]


def test_another_metric_scores_everything_anew(tiny_project: Path) -> None:
    reviews = tiny_project / "reviews.csv"
    head, *lines = reviews.read_text(encoding="utf-8").splitlines()
    swapped = {"rotten": "fresh", "fresh": "rotten"}
    for number in range(0, len(lines), 5):  # no student gets these right
        text, _, label = lines[number].rpartition(",")
        lines[number] = f"{text},{swapped[label]}"
    reviews.write_text("\n".join([head, *lines]), encoding="utf-8")
    given = ["distill", "--config", str(tiny_project / "recipe.yaml"), "--student", "1L-16H-32F-4A-gelu"]
    found = []
    for metric in ("accuracy", "matthews"):
        assert cli.main([*given, "--data.metric", metric, "--resume"]) == 0
        found.append(read_json(tiny_project / "run" / "results.json")["student"]["selection_quality"])
    assert cli.main([*given, "--data.metric", "matthews", "--overwrite"]) == 0
    afresh = read_json(tiny_project / "run" / "results.json")["student"]["selection_quality"]
    assert found[0] != found[1] == afresh


def test_no_results_stand_beside_another_students_weights(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["distill", "--config", str(tiny_project / "recipe.yaml"), "--student"]
    assert cli.main([*given, "1L-16H-32F-4A-gelu"]) == 0

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_kdnas.winner.measure", interrupted)
    assert cli.main([*given, "2L-16H-32F-4A-gelu", "--resume"]) == cli.INTERRUPTED
    assert AutoConfig.from_pretrained(tiny_project / "run" / "student").num_hidden_layers == 2
    for command in (["report", str(tiny_project / "run")], ["publish", str(tiny_project / "run"), "a/b"]):
        assert cli.main(command) == 2


def test_a_random_search_of_the_same_budget_stands_beside_the_winner(tiny_project: Path) -> None:
    assert _search(tiny_project, "--search.random_baseline", "true") == 0
    results = read_json(tiny_project / "run" / "results.json")
    assert results["random_baseline"]["architecture"] in (tiny_project / "run" / "report.html").read_text()
    trials = list((tiny_project / "run" / "search").glob("random-*/candidates/*.json"))
    assert len(trials) == len(results["candidates"]) == 6


@pytest.mark.usefixtures("steady_latency")
def test_what_is_too_slow_is_measured_but_not_trained(
    tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are asked for in its place."""
    monkeypatch.setattr("hf_kdnas.search.latencies.TOLERANCE", 1e9)  # nothing is left out unmeasured
    two = ("--search.episodes", "2", "--search.constraints.speedup", "2")
    assert _search(tiny_project, *SHORT, *two) == 0
    results = read_json(tiny_project / "run" / "results.json")
    pruned = [each for each in results["candidates"] if each["state"] == "pruned"]
    assert pruned
    for each in pruned:
        assert (each["reason"], each["quality"], each["reward"]) == ("latency", None, None)
        assert each["ratio"] > 0.5
    complete = [each for each in results["candidates"] if each["state"] == "complete"]
    assert len(complete) == 6
    assert all(each["ratio"] <= 0.5 for each in complete)
    trained = {path.stem for path in (tiny_project / "run").glob("search/*/candidates/*.json")}
    assert trained == {each["architecture"] for each in complete}
    assert all(each["speedup"] >= 2 for each in results["finalists"])


@pytest.mark.usefixtures("steady_latency")
def test_searches_in_one_storage_share_what_they_find(tiny_project: Path) -> None:
    storage = ("--search.storage", f"sqlite:///{tiny_project / 'study.db'}")
    few = ("--search.candidates", "2", "--search.finalists", "1")
    trained, told = [], []
    for name in ("one", "two"):
        run = tiny_project / name
        assert _search(tiny_project, *SHORT, *few, *storage, "--output_dir", str(run)) == 0
        trained.append({path.stem for path in run.glob("search/*/candidates/*.json")})
        told.append({each["architecture"] for each in read_json(run / "results.json")["candidates"]})
    assert [len(each) for each in trained] == [2, 2]
    assert trained[0].isdisjoint(trained[1])
    assert told == [trained[0], trained[0] | trained[1]]


@pytest.mark.parametrize("setting", ["cache false", "disk_budget_gb 1e-9"])
def test_signals_that_are_not_kept_come_from_a_live_teacher(
    again: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    name, value = setting.split()
    run, signals = tmp_path / "run", tmp_path / "cache" / "signals"
    shutil.rmtree(signals)
    kept = read_json(run / "results.json")
    assert cli.main([*again, f"--distillation.signals.{name}", value, "--overwrite"]) == 0
    assert "the teacher runs beside its students" in capsys.readouterr().err
    assert not signals.exists()
    student = read_json(run / "results.json")["student"]
    assert student["quality"] == pytest.approx(kept["student"]["quality"], abs=0.1)  # kept in fp16


def test_a_card_that_crashes_loses_nothing(
    again: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    written = [run / name for name in ("results.json", "README.md", "report.html", "student/README.md")]
    for path in written:
        path.unlink()

    def crash(run_dir: Path) -> None:
        raise RuntimeError("no card")

    with monkeypatch.context() as patch:
        patch.setattr("hf_kdnas.stages.render_card", crash)
        with pytest.raises(RuntimeError, match="no card"):
            cli.main(again)
    assert [path.exists() for path in written] == [True, False, False, False]
    assert cli.main(["report", str(run)]) == 0
    assert all(path.stat().st_size > 0 for path in written)


@pytest.mark.usefixtures("steady_latency")
def test_students_learn_from_texts_that_are_made(tiny_project: Path) -> None:
    augmented = ("--distillation.augmentation.copies", "2")
    assert _search(tiny_project, *augmented) == 0
    results = read_json(tiny_project / "run" / "results.json")
    train = results["task"]["rows"]["train"]
    [signals] = [each for each in (tiny_project / "kdnas-cache" / "signals").iterdir() if each.is_dir()]
    assert len(TeacherSignals.open(signals).lengths) == 3 * train
    assert results["student"]["quality"] > 0.8
    assert _search(tiny_project) == 2
    assert _search(tiny_project, "--resume") == 0
    assert read_json(tiny_project / "run" / "results.json")["student"] != results["student"]


@pytest.mark.parametrize(
    ("qualities", "message"),
    [([0.0], "a student to keep a part of it"), ([0.8] + [math.nan] * 6, "none has a finite accuracy")],
    ids=["of the teacher", "of all candidates"],
)
def test_no_quality_to_go_on_with(
    tiny_project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    qualities: list[float],
    message: str,
) -> None:
    scores = iter(qualities)
    monkeypatch.setattr(Stages, "score", lambda self, model: next(scores))
    assert _search(tiny_project) == 2
    assert message in capsys.readouterr().err


def test_a_given_student_is_distilled_without_a_search(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(tiny_project / "recipe.yaml")
    compare = ("--compare", "{objectives: {OD: {logits: {}}}, seeds: [0, 1]}")
    settings = (*compare, "--distillation.augmentation.copies", "1")
    assert cli.main(["distill", "--config", recipe, *settings]) == 0
    run = tiny_project / "run"
    results = read_json(run / "results.json")
    assert results["workflow"] == "distill"
    assert results["student"]["architecture"] == "2L-32H-64F-4A-gelu"
    assert [(arm["name"], len(arm["qualities"])) for arm in results["comparison"]] == [
        ("no distillation", 2),
        ("OD", 2),
    ]
    for name in ("student/onnx/model.onnx", "student/onnx/model_int8.onnx", "student/README.md"):
        assert (run / name).stat().st_size > 0, name
    report, card = ((run / name).read_text(encoding="utf-8") for name in ("report.html", "README.md"))
    assert "The same student from other signals" in report
    assert "Course of the search" not in report
    assert "neural-architecture-search" not in card
    assert not (run / "search").exists()

    # Nothing is trained twice, and what it made is a student again.
    students = {path: path.stat().st_mtime_ns for path in run.glob("students/*/model.safetensors")}
    assert len(students) == 5
    again = ["--student", str(run / "student"), "--output_dir", str(tiny_project / "again")]
    assert cli.main(["distill", "--config", recipe, *settings]) == 0
    assert {path: path.stat().st_mtime_ns for path in students} == students
    assert cli.main(["distill", "--config", recipe, *again]) == 0
    assert read_json(tiny_project / "again" / "results.json")["initialisation"] == "given"


def test_a_search_from_a_superlm(tiny_project: Path, tiny_bert_config) -> None:
    """Students begin as its subnets; other weights in the same folder are another search."""
    superlm, run = tiny_project / "superlm", tiny_project / "run"
    widest = Architecture(2, 24, 3, 48)
    model = BertModel(widest.apply_to(tiny_bert_config))
    model.save_pretrained(superlm / "spaces" / "all" / "superlm")
    settings = ("--distillation.initialisation", "superlm", "--search.baselines", "[1L-24H-48F-3A-gelu]")
    assert _search(tiny_project, *settings, "--distillation.superlm", str(superlm)) == 0
    results = read_json(run / "results.json")
    assert results["initialisation"] == "superlm"
    shapes = [Architecture.parse(each["architecture"]) for each in results["candidates"]]
    assert len(shapes) == 6
    assert all(shape.fits_into(widest) for shape in shapes)
    assert (run / "student" / "onnx" / "model.onnx").stat().st_size > 0

    def made() -> dict[Path, int]:
        files = [*run.glob("students/*/model.safetensors"), *run.glob("search/*/candidates/*.json")]
        return {path: path.stat().st_mtime_ns for path in files}

    # Its weights count, not where they are.
    before, moved = made(), superlm.rename(tiny_project / "moved")
    settings = (*settings, "--distillation.superlm", str(moved))
    assert _search(tiny_project, *settings, "--resume") == 0
    assert made() == before

    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.mul_(1.5)
    model.save_pretrained(moved / "spaces" / "all" / "superlm")
    assert _search(tiny_project, *settings) == 0
    after = made()
    assert {path: after[path] for path in before} == before
    new = [path.name for path in after.keys() - before.keys()]
    students = new.count("model.safetensors")
    assert len(new) - students == 6
    assert students >= 2


def test_shapes_that_are_too_large_to_win_are_not_tried(tiny_project: Path) -> None:
    recipe = load_recipe(str(tiny_project / "recipe.yaml"))
    everything = plan_search(recipe)
    most = sorted(map(everything.parameters, everything.space))[len(everything.space) // 2]
    limited = load_recipe(str(tiny_project / "recipe.yaml"), [f"search.constraints.parameters={most}"])
    assert max(map(everything.parameters, plan_search(limited).space)) == most


def test_the_export_is_what_the_recipe_says_now(tiny_project: Path) -> None:
    def distilled(int8: bool) -> dict[str, Any]:
        recipe = load_recipe(
            str(tiny_project / "recipe.yaml"), ["student=2L-16H-32F-2A-gelu", f"export.int8={int8}"]
        )
        return workflows.distill(recipe, resume=True)

    quantised = tiny_project / "run" / "student" / "onnx" / "model_int8.onnx"
    for int8 in (False, True, False):
        assert (distilled(int8)["student"]["int8"] is not None) == int8
        assert quantised.exists() == int8
