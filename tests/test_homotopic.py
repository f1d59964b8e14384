"""`kdnas homotopic` from end to end: a stock student, in ONNX, with its report, its card and its path."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from hf_kdnas import cli, homotopic, load_recipe
from hf_kdnas.distill.trainer import last_checkpoint
from hf_kdnas.homotopic.plan import objectives_of, plan_homotopic, segments_of
from hf_kdnas.modeling_exact_bert import ExactBertConfig, ExactBertForSequenceClassification
from hf_kdnas.pruning import PrunedDistillation
from hf_kdnas.run import read_json

SETTINGS = """
homotopic: {target: 0.5, compactions: 3, held_out: 16, evaluation_steps: 5, save_steps: 4}
"""


@pytest.fixture
def project(tiny_project: Path) -> Path:
    """The tiny project, with a section for `kdnas homotopic`."""
    with (tiny_project / "recipe.yaml").open("a", encoding="utf-8") as file:
        file.write(SETTINGS)
    return tiny_project


def test_the_names_that_the_documentation_tells_are_there() -> None:
    text = (Path(__file__).parents[1] / "docs" / "homotopic.md").read_text(encoding="utf-8")
    for name in homotopic.__all__:
        assert f"`{name}`" in text
        assert getattr(homotopic, name).__doc__
    with pytest.raises(ImportError):
        from hf_kdnas.homotopic import nothing_like_it  # noqa: F401


def narrow(project: Path, *settings: str) -> int:
    return cli.main(["homotopic", "--config", str(project / "recipe.yaml"), *settings])


# Loads the student as anyone would, and the last checkpoint's weights into the same class.
STRANGER = """
import torch
from transformers import AutoModelForSequenceClassification

wanted = torch.load(sys.argv[2])
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
with torch.inference_mode():
    found = model(**wanted["inputs"]).logits
assert (found - wanted["logits"]).abs().max() < 1e-5
"""


def test_the_student_is_the_model_of_the_last_step_for_anyone(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stranger: Callable[..., str],
) -> None:
    from hf_kdnas.homotopic.trainer import HomotopicTrainer

    inputs = {
        "input_ids": torch.randint(5, 120, (3, 9)),
        "attention_mask": torch.ones(3, 9, dtype=torch.long),
    }
    original = HomotopicTrainer.train

    def noting(trainer, *arguments, **options):
        output = original(trainer, *arguments, **options)
        with torch.inference_mode():
            logits = trainer.model.eval()(**inputs).logits
        torch.save({"inputs": inputs, "logits": logits}, project / "last.pt")
        return output

    monkeypatch.setattr(HomotopicTrainer, "train", noting)
    assert narrow(project) == 0
    shown = capsys.readouterr()
    assert "3L-16H-32F-4A-gelu" in shown.out
    assert "target 0.5: 3L-16H-32F-4A-gelu, by hidden sizes 32, 28, 20, 16" in shown.err
    stranger(STRANGER, str(project / "run" / "student"), str(project / "last.pt"))


def test_a_run_leaves_what_kdnas_distill_leaves_and_its_path(project: Path) -> None:
    assert narrow(project) == 0
    run = project / "run"
    for name in (
        "model.safetensors",
        "onnx/model.onnx",
        "onnx/model_int8.onnx",
        "README.md",
        "tokenizer.json",
    ):
        assert (run / "student" / name).stat().st_size > 0, name
    assert not (run / "students" / "homotopic.checkpoints").exists()
    results = read_json(run / "results.json")
    assert results["student"]["architecture"] == "3L-16H-32F-4A-gelu"
    assert (results["workflow"], results["initialisation"]) == ("homotopic", "copy")
    path = results["homotopic"]
    assert [each["architecture"] for each in path["segments"]][::3] == [
        "3L-32H-64F-4A-gelu",
        "3L-16H-32F-4A-gelu",
    ]
    steps = [each["step"] for each in path["discrepancy"]]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, path["segments"][-1]["end"])
    assert all("discrepancy_hidden" in each for each in path["discrepancy"])
    assert "HomoDistil" in (run / "README.md").read_text(encoding="utf-8")
    report = (run / "report.html").read_text(encoding="utf-8")
    for text in (
        "How the student was narrowed",
        "3L-16H-32F-4A-gelu from step",
        'id="narrowing-',
        "hidden size",
    ):
        assert text in report, text


def test_nothing_is_done_twice_and_a_kill_is_made_good(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(*arguments) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hf_kdnas.homotopic.run.HomotopicDistillation._compact", dies)
        assert narrow(project) == 130
    checkpoints = project / "run" / "students" / "homotopic.checkpoints"
    assert last_checkpoint(checkpoints / "segment-0") is not None
    # Another target is not begun beside an unfinished student, also where the folder is taken over.
    assert narrow(project, "--homotopic.target", "0.75") == 2
    recipe = (project / "run" / "recipe.yaml").read_text(encoding="utf-8")
    assert narrow(project, "--homotopic.target", "0.75", "--resume") == 2
    assert (project / "run" / "recipe.yaml").read_text(encoding="utf-8") == recipe
    assert narrow(project, "--teacher.dtype", "bfloat16", "--resume") == 2
    assert "with other teacher or data" in capsys.readouterr().err
    assert narrow(project, "--resume") == 0
    results = read_json(project / "run" / "results.json")
    monkeypatch.setattr(PrunedDistillation, "_trained", dies)
    assert narrow(project) == 0
    assert read_json(project / "run" / "results.json")["student"]["quality"] == results["student"]["quality"]
    # Nor is a student another one that was looked at or kept less often, or is asked for by its key.
    same = ["--homotopic.held_out", "8", "--homotopic.evaluation_steps", "9", "--homotopic.save_steps", "9"]
    # What a launch left that was killed behind its last score is cleared away.
    (checkpoints / "segment-3").mkdir(parents=True)
    assert narrow(project, "--homotopic.target", "3L-16H-32F-4A-gelu", *same, "--resume") == 0
    assert not checkpoints.exists()


def test_relations_have_one_number_of_heads_on_all_the_way(project: Path) -> None:
    settings = ["distillation.objectives={relations: {}}", "homotopic.target=3L-16H-32F-4A-gelu"]
    plan = plan_homotopic(load_recipe(str(project / "recipe.yaml"), settings))
    [target] = plan.space
    widths = {each.shape.attention_size for each in segments_of(plan, target)}
    assert widths == {32, 28, 20, 16}
    assert objectives_of(plan, target)["relations"]["relation_heads"] == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--homotopic", "null"], "homotopic: got 'nothing'; this recipe doesn't say what"),
        (["--homotopic.target", "null"], "homotopic.target: got 'nothing'; this recipe doesn't say what"),
        (["--homotopic.target", "3L-64H-64F-4A-gelu"], "nearest that is left then is 3L-32H-64F-4A-gelu"),
        (["--homotopic.target", "3L-18H-64F-4A-gelu"], "nearest that one holds is 3L-16H-64F-4A-gelu"),
        (["--homotopic.end", "1.5"], "homotopic.end: got 1.5; must be above 0, at most 1"),
        (["--homotopic.end", "1"], "leave some of the training"),
        (["--homotopic.smoothing", "0"], "homotopic.uncertainty: got 0.85; with smoothing: 0"),
        (["--homotopic.compactions", "1000"], "homotopic.compactions: got 1000; the training has"),
        (["--data.limit", "20", "--distillation.training.epochs", "1"], "more epochs or rows"),
        (["--data.task", "fill-mask", "--teacher.fine_tune", "null", "--data.labels", "null"], "ForMaskedLM"),
        (["--distillation.objectives.mlm", "{}"], "has nothing for mlm"),
        (["--distillation.objectives", "{sentence: {}}"], "homotopic.maps: kept"),
        (
            ["--distillation.training.training_arguments", "{save_only_model: true}"],
            "begins at a whole checkpoint",
        ),
        (["--distillation.training.training_arguments", "{save_safetensors: false}"], "a whole checkpoint"),
        (["--distillation.training.training_arguments", "{ignore_data_skip: true}"], "each segment goes on"),
        (["--distillation.training.training_arguments", "{max_steps: null}"], "must be a number"),
        (
            ["--distillation.objectives", "{relations: {relation_heads: 16}}"],
            "28 of the student (of 3L-28H-54F-4A-gelu, on the way to",
        ),
        (
            ["--distillation.training.training_arguments", "{optim: adafactor}"],
            "with a student are adamw_torch, adamw_torch_fused, sgd",
        ),
        (
            ["--student", "2L-16H-32F-2A-gelu"],
            "got '2L-16H-32F-2A-gelu'; here homotopic.target says what",
        ),
        (["--compare.objectives", "{labels: {task: {}}}"], "compare: got ['labels']; here one student"),
        (["--distillation.initialisation", "slice"], "initialisation: got 'slice'; here a student begins"),
        (["--homotopic.importance", "gradient"], "allowed are sensitivity, taylor, magnitude, activation"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_any_work(
    project: Path, settings: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert narrow(project, *settings) == 2
    assert message in capsys.readouterr().err
    assert not (project / "run").exists()


@pytest.mark.parametrize("terms", [("task", "mlm", "hidden", "attention", "embeddings"), ("task",)], ids=str)
def test_a_masked_language_model(project: Path, tiny_bert_config, terms: tuple[str, ...]) -> None:
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    teacher = BertForMaskedLM(tiny_bert_config)
    with torch.no_grad():
        teacher.cls.predictions.bias[5] = 5.0  # it says one word all the time, which is right now and then
    teacher.save_pretrained(project / "base")
    recipe = yaml.safe_load((project / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["data"] = {"task": "fill-mask", "path": str(project / "reviews.csv"), "max_length": 32}
    recipe["data"]["mlm_probability"] = 0.5
    recipe["teacher"].pop("fine_tune")
    recipe["distillation"]["objectives"] = {name: {} for name in terms}
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert narrow(project) == 0
    results = read_json(project / "run" / "results.json")
    first, last = results["homotopic"]["discrepancy"][0], results["homotopic"]["discrepancy"][-1]
    names = {f"discrepancy_{name}" for name in (*terms[1:], "mlm")}
    assert {name for name in first if name.startswith("discrepancy_")} == names
    assert all(first[name] < 1e-9 < last[name] for name in names)


def test_a_sentence_encoder(project: Path) -> None:
    recipe = yaml.safe_load((project / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["data"] = {"task": "sentence-similarity", "path": str(project / "reviews.csv"), "max_length": 32}
    recipe["teacher"].pop("fine_tune")
    recipe["homotopic"]["maps"] = "kept"
    terms = ("sentence", "hidden", "attention", "embeddings")
    recipe["distillation"]["objectives"] = {name: {} for name in terms}
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert narrow(project) == 0
    first = read_json(project / "run" / "results.json")["homotopic"]["discrepancy"][0]
    assert all(first[f"discrepancy_{name}"] < 1e-6 for name in terms)


def find(project: Path, *settings: str, finalise: str = "homotopic") -> int:
    found = ["--homotopic.target", "null", "--search.finalise", finalise, *settings]
    return cli.main(["search", "--config", str(project / "recipe.yaml"), *found])


def test_a_search_narrows_its_finalists_from_their_teacher(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find(project) == 0
    results = read_json(project / "run" / "results.json")
    assert (results["workflow"], results["initialisation"]) == ("search", "copy")
    assert results["space"]["reachable"] == results["space"]["size"]
    teacher, winner = results["teacher"]["architecture"], results["student"]["architecture"]
    shapes = [each["architecture"] for each in results["homotopic"]["segments"]]
    # Its depth and the teacher's widths at first, its own shape at last.
    assert (shapes[0].partition("L")[2], shapes[-1]) == (teacher.partition("L")[2], winner)
    made = [each["architecture"] for each in (*results["finalists"], *results["baselines"])]
    students = project / "run" / "students"
    for shape in made:
        assert [each.suffix for each in students.glob(f"{shape}-*") if each.is_file()] == [".json"], shape
        assert "head" not in shape
    assert not list(students.glob("*.checkpoints"))
    text = (project / "run" / "README.md").read_text(encoding="utf-8")
    assert "from a copy of the teacher" in text
    assert "HomoDistil" in text
    assert "How the student was narrowed" in (project / "run" / "report.html").read_text(encoding="utf-8")

    # How finalists are narrowed is nothing to the candidates: they are not tried again.
    def dies(*arguments) -> None:
        raise AssertionError("a candidate was distilled again")

    monkeypatch.setattr("hf_kdnas.search.mini_kd.MiniKD._distil", dies)
    assert find(project, "--homotopic.compactions", "2", "--resume") == 0


def test_candidates_of_a_finished_search_are_narrowed_without_another(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the space stays the same: with 4 heads no member's are larger than the teacher's."""
    same = ["--space.num_attention_heads", "[4]", "--resume"]
    assert find(project, *same, finalise="distill") == 0

    def dies(*arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_kdnas.search.mini_kd.MiniKD._distil", dies)
    assert find(project, *same) == 0
    other = ["--output_dir", str(project / "other"), "--resume"]
    assert find(project, *other, finalise="distill") == find(project, *other) == 130
    assert len(list((project / "other" / "search").iterdir())) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--homotopic.target", "0.5"], "narrows finalists to the shapes that the search finds"),
        (["--search.baselines", "[2L-32H-64F-2A-gelu]"], "search.baselines.2L-32H-64F-2A-gelu: got"),
        (["--space.num_attention_heads", "[1]", "--space.hidden_size", "[32]"], "search.finalise: homotopic"),
        (["--homotopic.compactions", "1000"], "homotopic.compactions: got 1000; the training has"),
        (
            # The first member and the last pass; the one between them comes by a width of 21.
            [
                *("--space.num_attention_heads", "[2]", "--space.hidden_size", "[12, 14, 16]"),
                *("--distillation.objectives", "{relations: {relation_heads: 2}}"),
            ],
            "L-14H-",
        ),
    ],
    ids=str,
)
def test_a_search_that_cannot_narrow_is_refused_before_any_work(
    project: Path, settings: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find(project, *settings) == 2
    assert message in capsys.readouterr().err
    assert not (project / "run").exists()


def test_a_teacher_of_the_exact_type_is_not_narrowed_by_a_search(
    project: Path, tiny_bert_config, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {**tiny_bert_config.to_dict(), "head_size": 12, "architectures": None}
    config = ExactBertConfig(**{name: value for name, value in fields.items() if name != "model_type"})
    ExactBertForSequenceClassification(config).save_pretrained(project / "base")
    assert find(project) == 2
    assert "teachers are narrowed whose heads share the hidden size" in capsys.readouterr().err
    assert not (project / "run").exists()


@pytest.mark.slow
def test_two_ranks_narrow_as_one_does(project: Path) -> None:
    def command(ranks: list[str], name: str) -> None:
        output = ["--output_dir", str(project / name)]
        done = subprocess.run(
            [*ranks, "-m", "hf_kdnas", "homotopic", "--config", str(project / "recipe.yaml"), *output],
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command([sys.executable], "one")
    command(launcher, "two")
    one, two = (read_json(project / name / "results.json") for name in ("one", "two"))
    assert two["environment"]["processes"] == "2"
    assert two["homotopic"]["segments"] == one["homotopic"]["segments"]
    for left, right in zip(one["homotopic"]["discrepancy"], two["homotopic"]["discrepancy"], strict=True):
        assert left["step"] == right["step"]
        assert right["discrepancy_hidden"] == pytest.approx(left["discrepancy_hidden"], rel=1e-3, abs=1e-6)
