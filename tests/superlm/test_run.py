"""From a recipe to SuperLMs, a ranking and students, as `kdnas superlm` does it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertModel, MPNetConfig, MPNetModel

from hf_kdnas import cli
from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.exact import as_exact
from hf_kdnas.processes import join_processes
from hf_kdnas.recipe import load_recipe
from hf_kdnas.run import RunFolder
from hf_kdnas.superlm import trainer as trainer_module
from hf_kdnas.superlm.plan import plan_superlm
from hf_kdnas.superlm.run import SuperLMRun

SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "max_position_embeddings",
)
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
HERE = str(Path(cli.__file__).parents[1])


def run(action: str, recipe_file: Path, *options: str) -> int:
    return cli.main(["superlm", action, "--config", str(recipe_file), *options])


def launch(command: list[str], *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def held_out_loss(run: SuperLMRun, student) -> float:
    """A student's loss from its own forward and the teacher's, computed afresh."""
    criterion = run.held_out.losses[type(run.plan.teacher).from_config(student.config)]
    total = 0.0
    for window in run.windows.held_out:
        ids = torch.tensor([window])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            mine = forward_signals(student, Capture(student, criterion.student_signals), batch)
            theirs = forward_signals(run.teacher, Capture(run.teacher, criterion.teacher_signals), batch)
            total += float(criterion(mine, theirs, batch, criterion.counts(batch))[0])
    return total / len(run.windows.held_out)


def test_train_rank_and_extract(recipe_file, capsys, tmp_path) -> None:
    assert run("train", recipe_file) == 0
    assert "wide: held-out loss largest" in capsys.readouterr().out
    assert run("rank", recipe_file) == 0
    out = capsys.readouterr().out
    assert out.startswith("8 members")
    assert run("rank", recipe_file, "--by", "flops") == 0
    assert capsys.readouterr().out.startswith("8 members")
    ranking = json.loads((tmp_path / "run" / "ranking.json").read_text(encoding="utf-8"))
    assert [each["loss"] for each in ranking] == sorted(each["loss"] for each in ranking)
    assert {each["space"] for each in ranking} == {"narrow", "wide"}
    smallest = min(ranking, key=lambda each: each["parameters"])

    target = tmp_path / "student"
    limit = str(smallest["parameters"])
    assert run("extract", recipe_file, "--parameters", limit, "--output", str(target)) == 0
    assert smallest["architecture"] in capsys.readouterr().out
    card = (target / "README.md").read_text(encoding="utf-8")
    assert f"# tiny {smallest['architecture']}\n" in card
    assert "distilled from **teacher**" in card
    assert "base_model" not in card
    assert str(tmp_path) not in card
    student = AutoModel.from_pretrained(target).eval()
    assert sum(each.numel() for each in student.parameters()) == smallest["parameters"]
    assert AutoTokenizer.from_pretrained(target)("the film")["input_ids"]
    assert json.loads((target / "extracted.json").read_text(encoding="utf-8"))["loss"] == smallest["loss"]

    (target / "README.md").write_text(f"{card}\n## My notes\n\nGood.\n", encoding="utf-8")
    assert run("extract", recipe_file, "--parameters", limit, "--output", str(target)) == 0
    assert "## My notes\n\nGood.\n" in (target / "README.md").read_text(encoding="utf-8")
    (target / "notes.txt").write_text("mine", encoding="utf-8")
    assert run("extract", recipe_file, "--output", str(target)) == 2
    assert "it holds notes.txt" in capsys.readouterr().err
    assert (target / "notes.txt").read_text(encoding="utf-8") == "mine"

    for limit in ("--parameters", "--latency-ms", "--speedup"):
        assert run("extract", recipe_file, limit, "0") == 2
        assert "must be above 0" in capsys.readouterr().err
    assert run("extract", recipe_file, "--output", str(recipe_file)) == 2
    assert "output: got " in capsys.readouterr().err

    # The loss of the ranking is that of the student, run on its own beside the teacher.
    recipe = load_recipe(str(recipe_file))
    again = SuperLMRun(plan_superlm(recipe), RunFolder(tmp_path / "run"), join_processes())
    assert held_out_loss(again, student) == pytest.approx(smallest["loss"], rel=1e-2)  # signals in fp16
    finer = plan_superlm(load_recipe(str(recipe_file), ["distillation.signals.precision=fp32"]))
    held_out = SuperLMRun(finer, RunFolder(tmp_path / "run"), join_processes()).held_out
    assert {each.dtype for each in held_out.signals.collate([0], 16).values()} == {torch.float32}


def test_a_kill_between_a_student_and_its_card_is_made_good(recipe_file, tmp_path, monkeypatch) -> None:
    """Its folder is whole, and says which member it is."""
    assert run("train", recipe_file) == run("rank", recipe_file) == 0
    target = tmp_path / "student"

    def dies(*arguments) -> None:
        raise KeyboardInterrupt

    ranking = json.loads((tmp_path / "run" / "ranking.json").read_text(encoding="utf-8"))
    sizes = [each["parameters"] for each in ranking]
    for limit in (max(sizes), min(sizes)):
        with monkeypatch.context() as context:
            context.setattr("hf_kdnas.superlm_workflows.render_extracted_card", dies)
            budget = ["--parameters", str(limit)]
            assert run("extract", recipe_file, *budget, "--output", str(target)) == 130
        about = json.loads((target / "extracted.json").read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(target)
        assert Architecture.from_config(config).key == about["architecture"]
        assert about["model_type"] == config.model_type
    assert run("extract", recipe_file, "--output", str(target)) == 0


@pytest.mark.parametrize("kind", ["mpnet", "exact"])
def test_students_of_other_families(recipe_file, tmp_path, kind) -> None:
    teacher = tmp_path / "teacher"
    bert = BertModel.from_pretrained(teacher)
    sizes = {name: getattr(bert.config, name) for name in SIZES}
    model = as_exact(bert) if kind == "exact" else MPNetModel(MPNetConfig(**sizes))
    model.save_pretrained(teacher)
    for command in ("train", "rank"):
        assert run(command, recipe_file) == 0
    assert run("extract", recipe_file, "--output", str(tmp_path / "student")) == 0
    student = AutoModel.from_pretrained(tmp_path / "student")
    assert type(student) is type(model)
    assert ("trust_remote_code" in (tmp_path / "student" / "README.md").read_text()) == (kind == "exact")


def test_a_latency_is_measured_before_a_student_is_written(recipe_file, capsys, tmp_path) -> None:
    settings = ["--latency.sequence_length", "8", "--latency.rounds", "5"]
    assert run("train", recipe_file, *settings) == 0
    assert run("rank", recipe_file, *settings) == 0
    assert run("extract", recipe_file, "--latency-ms", "1000", *settings) == 0
    ranking = json.loads((tmp_path / "run" / "ranking.json").read_text(encoding="utf-8"))
    [folder] = (tmp_path / "run" / "students").iterdir()
    assert folder.name == ranking[0]["architecture"]
    found = json.loads((folder / "extracted.json").read_text(encoding="utf-8"))
    assert 0 < found["latency_ms"] < 1000
    capsys.readouterr()
    assert run("rank", recipe_file, "--by", "latency", *settings) == 0
    head, *front = capsys.readouterr().out.splitlines()
    assert head.startswith("8 members")
    rows = [re.fullmatch(r" +(\S+) .* ms +([\d.]+)x  loss (\S+)  \w+", line) for line in front]
    speeds, losses = [float(row[2]) for row in rows], [float(row[3]) for row in rows]
    assert speeds == sorted(speeds, reverse=True)
    assert losses == sorted(losses, reverse=True)
    assert rows[-1][1] == ranking[0]["architecture"]
    assert run("extract", recipe_file, "--speedup", "1000", *settings) == 2
    assert "speedup: got 1000.0; the fastest architecture" in capsys.readouterr().err


def test_what_is_missing_is_said(recipe_file, capsys, tmp_path) -> None:
    for action in ("rank", "extract"):
        assert run(action, recipe_file) == 2
        assert "no SuperLM was trained there. Run kdnas superlm train first" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    folder = RunFolder(tmp_path / "run")
    folder.open("", "")
    SuperLMRun(plan_superlm(load_recipe(str(recipe_file))), folder, join_processes()).keep_settings()
    assert run("rank", recipe_file) == 2
    assert "no trained SuperLM of this space. Run kdnas superlm train first" in capsys.readouterr().err
    assert run("extract", recipe_file) == 2
    assert "nothing is ranked there yet. Run kdnas superlm rank first" in capsys.readouterr().err
    (tmp_path / "run" / "ranking.json").write_text('[{"loss": 1}]', encoding="utf-8")
    assert run("extract", recipe_file) == 2
    assert "ranking.json'; it can't be read" in capsys.readouterr().err


def test_a_space_that_is_not_trained_is_said_before_others_are_ranked(recipe_file, capsys, tmp_path) -> None:
    assert run("train", recipe_file) == 0
    shutil.rmtree(tmp_path / "run" / "spaces" / "wide" / "superlm")
    assert run("rank", recipe_file) == 2
    assert "superlm: got 'wide'" in capsys.readouterr().err
    assert not list((tmp_path / "run" / "spaces").rglob("ranking-*"))


def test_what_only_cards_read_may_change(recipe_file, tmp_path) -> None:
    assert run("train", recipe_file) == 0
    assert run("rank", recipe_file, "--teacher.base_model", "org/teacher") == 0


def test_bad_text_deletes_nothing_and_claims_no_folder(recipe_file, capsys, tmp_path) -> None:
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    empty = ["--data.path", str(tmp_path / "empty.txt"), "--data.reporting_split", "null"]
    assert run("train", recipe_file, *empty) == 2
    assert "too short for one window" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run("train", recipe_file) == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    assert run("train", recipe_file, *empty, "--overwrite") == 2
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert (tmp_path / "run" / "spaces" / "wide" / "superlm").is_dir()


def test_fewer_held_out_windows_than_asked_for_are_said(recipe_file, capsys, tmp_path) -> None:
    plan = plan_superlm(load_recipe(str(recipe_file), ["superlm.held_out=5000"]))
    found = SuperLMRun(plan, RunFolder(tmp_path / "run"), join_processes()).windows.held_out
    said = f"held-out text is {len(found)} windows of 16 tokens, not the 5000 of superlm.held_out"
    assert said in capsys.readouterr().err


def test_a_superlm_goes_on_with_its_own_settings_alone(recipe_file, capsys, tmp_path) -> None:
    assert run("train", recipe_file) == 0
    began = {name: (tmp_path / "run" / name).read_bytes() for name in ("recipe.yaml", "run.json")}
    for action, *resumed in (("train", "--resume"), ("rank",), ("extract",)):
        assert run(action, recipe_file, "--seed", "7", *resumed) == 2
        said = capsys.readouterr().err
        assert f"seed: got 7; {tmp_path / 'run'} began with 42, and a SuperLM goes on with its own" in said
        assert {name: (tmp_path / "run" / name).read_bytes() for name in began} == began
    narrower = "{narrow: {num_hidden_layers: [1], hidden_size: [16], num_attention_heads: [2]}}"
    assert run("train", recipe_file, "--superlm.spaces", narrower, "--resume") == 2
    assert re.search(r"superlm\.spaces\.narrow: got \['1L-16H.*began with \['", capsys.readouterr().err)
    assert run("train", recipe_file, "--superlm.held_out", "5", "--resume") == 2
    assert "superlm.held_out: got 5; " in capsys.readouterr().err
    steps = ["--superlm.training.steps", "3", "--superlm.training.learning_rate", "1"]
    assert run("train", recipe_file, *steps, "--resume") == 2
    assert "(and with other superlm.training.steps), and" in capsys.readouterr().err
    assert run("rank", recipe_file, "--data.mlm_probability", "0.3") == 2
    assert "data.mlm_probability: got 0.3; " in capsys.readouterr().err
    assert run("train", recipe_file, "--superlm.training.save_steps", "1", "--resume") == 0
    assert run("train", recipe_file, "--seed", "7", "--overwrite") == 0


def test_a_kill_while_a_checkpoint_is_replaced_loses_no_step(recipe_file, tmp_path, monkeypatch) -> None:
    """The first save has nothing to replace: killed in the second one, it goes on behind the first."""
    replace, seen = Path.replace, []

    def killed(source: Path, target: Path) -> Path:
        seen.append(target)
        if [each.name for each in seen].count("checkpoint") == 2:
            raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", killed)
    assert run("train", recipe_file) == 130
    monkeypatch.undo()
    space = tmp_path / "run" / "spaces" / "narrow"
    assert not (space / "checkpoint").exists()
    steps = []
    original = trainer_module.sandwich

    def noting(*arguments, **options):
        steps.append(options["step"])
        return original(*arguments, **options)

    monkeypatch.setattr(trainer_module, "sandwich", noting)
    assert run("train", recipe_file) == 0
    assert steps == [2, 3, 0, 1, 2, 3]
    assert sorted(each.name for each in space.iterdir()) == ["history.json", "start", "superlm"]


@pytest.mark.parametrize("initialisation", ["slice", "project"])
def test_a_superlm_starts_from_the_layers_that_the_recipe_names(
    recipe_file, initialisation, tmp_path
) -> None:
    settings = ["superlm.layers=last", f"superlm.initialisation={initialisation}"]
    plan = plan_superlm(load_recipe(str(recipe_file), settings))
    begun = SuperLMRun(plan, RunFolder(tmp_path / "run"), join_processes())
    begun._prepare()
    teacher, start = begun.teacher, begun._load(begun.folder / "spaces" / "narrow" / "start")
    assert [teacher.config.num_hidden_layers, start.config.num_hidden_layers] == [3, 2]
    for mine, theirs in zip(start.encoder.layer, teacher.encoder.layer[1:], strict=True):
        # Biases of the first map of a feed-forward network are neither projected nor fitted.
        assert torch.equal(mine.intermediate.dense.bias, theirs.intermediate.dense.bias[:32])


def test_nothing_is_trained_twice(recipe_file, tmp_path) -> None:
    assert run("train", recipe_file) == 0
    file = tmp_path / "run" / "spaces" / "wide" / "superlm" / "model.safetensors"
    before = file.stat().st_mtime_ns
    assert run("train", recipe_file) == 0
    assert file.stat().st_mtime_ns == before


def test_output_terms_train_a_masked_language_model(
    recipe_file, tiny_bert_config, tiny_tokenizer, tmp_path
) -> None:
    from transformers import BertForMaskedLM

    BertForMaskedLM(tiny_bert_config).save_pretrained(tmp_path / "teacher")
    objectives = ["--superlm.objectives", "{relations: {loss: mse}, hidden: {}, mlm: {}}"]
    assert run("train", recipe_file, *objectives) == 0
    assert run("rank", recipe_file, *objectives) == 0
    assert run("extract", recipe_file, *objectives, "--output", str(tmp_path / "student")) == 0
    config = json.loads((tmp_path / "student" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["BertForMaskedLM"]


# A launch whose first rank keeps the gradients of its first step: AdamW hides a factor that is theirs.
KEEPING = """
import os, sys
import torch
from hf_kdnas import cli
from hf_kdnas.architecture import Architecture

clip, seen = torch.nn.utils.clip_grad_norm_, []

def keeping(parameters, *arguments):
    seen.append([each for each in parameters if each.grad is not None])
    if len(seen) == 1 and os.environ.get("RANK", "0") == "0":
        torch.save([each.grad for each in seen[0]], sys.argv[1])
    return clip(seen[-1], *arguments)

torch.nn.utils.clip_grad_norm_ = keeping
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_two_ranks_train_and_rank_as_one_does(recipe_file, tmp_path, tiny_bert_config) -> None:
    from transformers import BertModel

    tiny_bert_config.hidden_dropout_prob = tiny_bert_config.attention_probs_dropout_prob = 0.0
    BertModel(tiny_bert_config).save_pretrained(tmp_path / "teacher")
    script = tmp_path / "keeping.py"
    script.write_text(KEEPING, encoding="utf-8")
    found = []
    for name, command in (("one", []), ("two", LAUNCHER)):
        for action in ("train", "rank"):
            done = launch(
                [*command, str(script), str(tmp_path / f"{name}.pt")],
                *("superlm", action, "--config", str(recipe_file), "--output_dir", str(tmp_path / name)),
                ACCELERATE_USE_CPU="true",
                PYTHONPATH=HERE,
            )
            assert done.returncode == 0, done.stderr
            said = [line for line in done.stdout.splitlines() if "held-out loss" in line or "members" in line]
            assert len(said) == {"train": 2, "rank": 1}[action]
        weights = load_file(tmp_path / name / "spaces" / "wide" / "superlm" / "model.safetensors")
        ranking = json.loads((tmp_path / name / "ranking.json").read_text(encoding="utf-8"))
        found.append((weights, {each["architecture"]: each["loss"] for each in ranking}))
    (weights, losses), (others, other_losses) = found
    for name, weight in weights.items():
        # Adam's first steps make much of the rounding of small gradients: 4 steps move a weight by 4e-3.
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-4)
    gradients, other_gradients = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    for gradient, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-11)
    assert other_losses == pytest.approx(losses, rel=1e-3)
    kept = {path.name for path in (tmp_path / "two" / "spaces" / "wide").glob("ranking-*/losses-*.json")}
    assert kept == {"losses-0.json", "losses-1.json"}


# A launch whose second rank kills itself within a step.
DYING = """
import os, signal, sys
from hf_kdnas import cli
from hf_kdnas.architecture import Architecture
from hf_kdnas.superlm.trainer import SuperLMTrainer

backward, seen = SuperLMTrainer._backward, []

def dying(*arguments):
    seen.append(1)
    if os.environ["RANK"] == "1" and len(seen) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return backward(*arguments)

SuperLMTrainer._backward = dying
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_rank_that_dies_within_a_step_loses_nothing(recipe_file, tmp_path) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING, encoding="utf-8")
    train = ["superlm", "train", "--config", str(recipe_file), "--superlm.training.save_steps", "1"]

    def two_ranks(name: str, *, dies: bool = False) -> int:
        command = [*LAUNCHER, *([str(script), "10"] if dies else ["-m", "hf_kdnas"])]
        to = ["--output_dir", str(tmp_path / name)]
        return launch(command, *train, *to, ACCELERATE_USE_CPU="true", PYTHONPATH=HERE).returncode

    assert two_ranks("whole") == 0
    assert two_ranks("killed", dies=True) != 0
    kept = tmp_path / "killed" / "spaces" / "narrow" / "checkpoint" / "state.json"
    assert json.loads(kept.read_text(encoding="utf-8"))["step"] > 0
    assert two_ranks("killed") == 0
    for space in ("narrow", "wide"):
        whole, resumed = (
            load_file(tmp_path / name / "spaces" / space / "superlm" / "model.safetensors")
            for name in ("whole", "killed")
        )
        for name, weight in whole.items():
            torch.testing.assert_close(resumed[name], weight, rtol=0, atol=0)
