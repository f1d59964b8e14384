"""`push_to_hub`: a run that publishes its student at its end, and a Trainer that does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from hf_kdnas import cli

sys.path.insert(0, str(Path(__file__).parent))
from loopback_hub import Hub, put

REPO = "someone/tiny"


@pytest.fixture
def again(tiny_run: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that made the run, in its folder."""
    monkeypatch.setenv("KDNAS_CACHE", str(tiny_run.parent / "kdnas-cache"))
    recipe = tiny_run.parent / "recipe.yaml"
    arguments = ["--config", str(recipe), "--student", "2L-16H-32F-2A-gelu", "--output_dir", str(run_dir)]
    return ["distill", *arguments, "--push_to_hub", "true"]


def trained(run_dir: Path) -> dict[str, int]:
    """When each of a run's weights was written."""
    return {path.as_posix(): path.stat().st_mtime_ns for path in run_dir.rglob("*.safetensors")}


def test_a_finished_run_is_only_published(
    online: Hub, again: list[str], run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trained(run_dir)
    assert cli.main([*again, "--hub_private_repo", "true"]) == 0
    assert trained(run_dir) == before
    assert online.repos[REPO].private  # of the recipe's name
    assert {"model.safetensors", "onnx/model.onnx", "kdnas.json"} <= online.repos[REPO].files("main").keys()
    assert f"published: {online.endpoint}/{REPO}/commit/" in capsys.readouterr().err.replace("\n", "")


def test_a_run_survives_an_upload_that_fails(
    online: Hub, again: list[str], run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    online.begin((5, "500"), persistent=True)  # behind the look that is taken beforehand
    assert cli.main([*again, "--hub_model_id", "someone/else", "--hub_private_repo", "true"]) == 2
    shown = capsys.readouterr().err
    assert re.search(r"the Hub says: .*500", shown)
    told = re.search(r"The run is complete\. To publish it: kdnas (publish .*)$", shown.strip())
    assert told is not None
    assert (run_dir / "report.html").is_file()
    online.begin()
    assert cli.main(told[1].split()) == 0
    assert "model.safetensors" in online.repos["someone/else"].files("main")
    assert online.repos["someone/else"].private


@pytest.mark.slow
def test_of_several_ranks_the_first_alone_publishes(
    hub: Hub, environment: dict[str, str], again: list[str], tiny_run: Path
) -> None:
    environment |= {"ACCELERATE_USE_CPU": "true", "KDNAS_CACHE": str(tiny_run.parent / "kdnas-cache")}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "hf_kdnas"]
    done = subprocess.run(
        [sys.executable, *launcher, *again], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert hub.requests.count("GET /api/whoami-v2") == 2  # before the run, and at its end
    assert len([each for each in hub.requests if "/commit/" in each]) == 1


@pytest.mark.parametrize(
    ("token", "settings", "message"),
    [
        (None, [], "token: got 'none'.*hf auth login"),
        ("hf_reader0000", [], "role read'.*role write"),
        ("hf_fineread00", [], "without repo.write for someone"),
        ("hf_writer0000", ["--hub_model_id", "else/tiny"], "hub_model_id: .*belongs to somebody else"),
        ("hf_writer0000", ["--hub_model_id", "a/b/c"], "hub_model_id: got 'a/b/c'"),
        (
            "hf_writer0000",
            ["--hub_model_id", "public", "--hub_private_repo", "true"],
            "hub_private_repo: got 'someone/public'",
        ),
    ],
)
def test_what_cant_be_published_is_refused_before_anything_is_done(
    online: Hub,
    again: list[str],
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str | None,
    settings: list[str],
    message: str,
) -> None:
    put(online, "someone/public", {"a.txt": b"a"})
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(run_dir / "no-token"))
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert cli.main([*again, *settings, "--overwrite"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
    assert list(online.repos) == ["someone/public"]


def test_offline_it_is_refused(again: list[str], run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(again) == 2
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err


# huggingface_hub's own functions know only the Hub that was there when they were imported.
TRAIN = """
import sys
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from hf_kdnas import DistillationArguments, DistillationTrainer

teacher_dir, student_dir, out, strategy = sys.argv[1:]
teacher = AutoModelForSequenceClassification.from_pretrained(teacher_dir)
student = AutoModelForSequenceClassification.from_pretrained(student_dir)
tokenizer = AutoTokenizer.from_pretrained(student_dir)
rows = [{**tokenizer(text), "labels": label} for text, label in [("a good film", 1), ("a bad plot", 0)] * 8]
args = DistillationArguments(
    output_dir=out, num_train_epochs=1, use_cpu=True, report_to="none", save_strategy="epoch",
    objectives={"logits": {}, "hidden": {}}, push_to_hub=True, hub_model_id="someone/tiny",
    hub_strategy=strategy,
)
trainer = DistillationTrainer(
    student, args, teacher, train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
)
trainer.train()
trainer.evaluate()
assert trainer.criterion.state_dict()  # there are learned maps
trainer.push_to_hub()
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["every_save", "end"])
def test_the_trainer_pushes_the_student_alone(
    hub: Hub, environment: dict[str, str], tiny_run: Path, tmp_path: Path, strategy: str
) -> None:
    teacher = next((tiny_run.parent / "kdnas-cache" / "teachers").glob("*/config.json")).parent
    arguments = [str(each) for each in (teacher, tiny_run / "student", tmp_path / "out", strategy)]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").glob("checkpoint-*/criterion.safetensors"))
    files = hub.repos[REPO].files("main")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert not [name for name in files if "criterion" in name or "checkpoint" in name or "optimizer" in name]
    card = files["README.md"].decode()
    assert "generated_from_trainer" in card
    assert str(tmp_path) not in card
    assert str(tiny_run.parent) not in card
