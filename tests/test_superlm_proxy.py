"""Choosing a SuperLM's member by a task: what is fine-tuned, scored, kept and refused."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_kdnas import cli
from hf_kdnas.errors import InvalidInput
from hf_kdnas.evaluation import runs
from hf_kdnas.recipe import Recipe, load_recipe
from hf_kdnas.run import read_json
from hf_kdnas.superlm_proxy import Proxy
from hf_kdnas.superlm_workflows import Budget, extract_student, rank_superlms, train_superlms

WORDS = ["the", "a", "film", "plot", "story", "was", "is", "this"]
TWO_RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LABELLED = (["bad", "awful"], ["good", "great"])


def _sentence(draw: random.Random, label: int) -> str:
    words = [*draw.choices(WORDS, k=5), draw.choice(LABELLED[label])]
    draw.shuffle(words)
    return " ".join(words)


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """SST-2 in the layout of the Hub, with labels of the validation split that are turned round."""
    import pyarrow
    import pyarrow.parquet

    draw, folder = random.Random(0), tmp_path / "glue" / "sst2"
    folder.mkdir(parents=True)
    for split, rows, turned in (("train", 120, False), ("validation", 40, True)):
        labels = [draw.randrange(2) for _ in range(rows)]
        sentences = [_sentence(draw, 1 - label if turned else label) for label in labels]
        table = pyarrow.table({"sentence": sentences, "label": labels})
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
    return folder.parent


@pytest.fixture
def config(tiny_project: Path) -> Path:
    """A recipe over two spaces of 4 members."""
    draw = random.Random(1)
    for split, lines in (("train", 200), ("validation", 40)):
        text = "\n".join(_sentence(draw, draw.randrange(2)) for _ in range(lines))
        (tiny_project / f"texts.{split}.txt").write_text(text, encoding="utf-8")
    recipe = tiny_project / "superlm.yaml"
    recipe.write_text(
        f"""
name: tiny
output_dir: {tiny_project / "superlm"}
teacher: {{model: {tiny_project / "base"}}}
data: {{path: {tiny_project / "texts"}, reporting_split: validation, max_length: 16}}
superlm:
  spaces:
    wide:
      num_hidden_layers: [2, 3]
      hidden_size: [32]
      num_attention_heads: [4]
      intermediate_size: [32, 64]
      hidden_act: [gelu]
    narrow:
      num_hidden_layers: [2, 3]
      hidden_size: [16]
      num_attention_heads: [4]
      intermediate_size: [16, 32]
      hidden_act: [gelu]
  held_out: 16
  training: {{steps: 2, batch_size: 4, precision: fp32}}
""",
        encoding="utf-8",
    )
    return recipe


@pytest.fixture
def recipe(config: Path) -> Recipe:
    """Trained and ranked."""
    loaded = load_recipe(str(config))
    train_superlms(loaded)
    rank_superlms(loaded)
    return loaded


@pytest.fixture
def proxy(glue: Path) -> Callable[..., Proxy]:
    def make(**changes: Any) -> Proxy:
        usual = {"task": "sst2", "best": 3, "data": str(glue), "epochs": 6.0, "learning_rate": 3e-3}
        return Proxy(**{**usual, **changes})

    return make


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Width of each model that was fine-tuned, and its rows."""
    train, calls = runs.train_alone, []

    def noting(model: Any, criterion: Any, section: Any, rows: Any, *arguments: Any, **options: Any) -> None:
        calls.append((model.config.hidden_size, len(rows)))
        train(model, criterion, section, rows, *arguments, **options)

    monkeypatch.setattr(runs, "train_alone", noting)
    return calls


def _ranking(recipe: Recipe) -> list[dict[str, Any]]:
    return read_json(Path(recipe.output_dir) / "ranking.json")


def _kept(recipe: Recipe) -> list[Path]:
    return sorted((Path(recipe.output_dir) / "proxy").rglob("lr*.json"))


def test_the_best_are_fine_tuned_and_scored_on_rows_held_out_of_training(
    recipe: Recipe, proxy: Callable[..., Proxy], trained: list[tuple[int, int]]
) -> None:
    """On the validation split, whose labels are turned round, what is learned would be wrong."""
    found = extract_student(recipe, None, Budget(), proxy=proxy())
    best = _ranking(recipe)[:3]
    assert len(trained) == len(_kept(recipe)) == 3
    assert {rows for _, rows in trained} == {108}
    assert found["architecture"] in [each["architecture"] for each in best]
    assert (found["proxy"]["task"], found["proxy"]["metric"]) == ("sst2", "accuracy")
    scores = [read_json(file) for file in _kept(recipe)]
    assert {split for each in scores for split in each} == {"held_out"}
    assert found["proxy"]["score"] == max(each["held_out"]["accuracy"] for each in scores) > 0.7
    kept = read_json(Path(found["folder"]) / "extracted.json")
    assert {name: kept[name] for name in found if name != "folder"}.items() <= found.items()
    assert not (Path(recipe.output_dir) / "proxy" / "students").exists()


@pytest.mark.parametrize("winner", [0, 1, 2])
def test_the_highest_score_wins_and_of_equals_the_least_loss(
    recipe: Recipe, proxy: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch, winner: int
) -> None:
    values = iter([0.5, 0.5, 0.5] if winner == 0 else [0.6 if place == winner else 0.5 for place in range(3)])
    monkeypatch.setattr(runs, "_scores", lambda *arguments: {"accuracy": next(values)})
    found = extract_student(recipe, None, Budget(), proxy=proxy(epochs=0.1))
    assert found["architecture"] == _ranking(recipe)[winner]["architecture"]


def test_only_members_within_the_budget_are_tried(
    recipe: Recipe, proxy: Callable[..., Proxy], trained: list[tuple[int, int]], tmp_path: Path
) -> None:
    limit = min(each["parameters"] for each in _ranking(recipe) if each["space"] == "wide") - 1
    to = tmp_path / "student"
    found = extract_student(recipe, to, Budget(parameters=limit), proxy=proxy(best=9, epochs=0.1))
    assert [width for width, _ in trained] == [16] * 4
    assert found["parameters"] <= limit
    assert (to / "model.safetensors").is_file()


def test_a_killed_trial_goes_on_and_other_settings_count_anew(
    recipe: Recipe, proxy: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, calls = runs.train_alone, []

    def stopping(*arguments: Any, **options: Any) -> None:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        train(*arguments, **options)

    monkeypatch.setattr(runs, "train_alone", stopping)
    with pytest.raises(KeyboardInterrupt):
        extract_student(recipe, None, Budget(), proxy=proxy(epochs=0.1))
    assert len(_kept(recipe)) == 1

    def again(**changes: Any) -> int:
        before = len(calls)
        extract_student(recipe, None, Budget(), proxy=proxy(**changes))
        return len(calls) - before

    assert [again(epochs=0.1), again(epochs=0.1), again(epochs=0.1, best=4), again(epochs=0.2)] == [
        2,
        0,
        1,
        3,
    ]


def test_members_that_all_diverge_are_refused(recipe: Recipe, proxy: Callable[..., Proxy]) -> None:
    with pytest.raises(InvalidInput, match=r"proxy_learning_rate: .*sst2 diverges with every member"):
        extract_student(recipe, None, Budget(), proxy=proxy(learning_rate=1e30))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "sst-2"}, r"proxy: got 'sst-2'; tasks of GLUE are cola, .*Did you mean sst2\?"),
        ({"best": 0}, "best: got 0; must be at least 1"),
        ({"epochs": 0.0}, "proxy_epochs: got 0.0; must be above 0"),
        ({"learning_rate": -1.0}, "proxy_learning_rate: got -1.0; must be above 0"),
    ],
)
def test_settings_that_cannot_be_used(
    proxy: Callable[..., Proxy], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        proxy(**changes)


def test_data_that_are_missing_are_refused_before_any_work(
    recipe: Recipe, glue: Path, proxy: Callable[..., Proxy], trained: list[tuple[int, int]]
) -> None:
    with pytest.raises(InvalidInput, match=r"proxy_data: got .*no folder mrpc; there are sst2"):
        extract_student(recipe, None, Budget(), proxy=proxy(task="mrpc"))
    (glue / "sst2" / "train.parquet").unlink()
    with pytest.raises(InvalidInput, match=r"sst2: data.path"):
        extract_student(recipe, None, Budget(), proxy=proxy())
    assert not trained


def test_the_command_shows_the_score(
    recipe: Recipe, config: Path, glue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["superlm", "extract", "--config", str(config), "--best", "2", "--proxy-epochs", "0.1"]
    assert cli.main(command) == 2
    assert "best: got 2; it is about --proxy. Give --proxy TASK as well." in capsys.readouterr().err
    assert cli.main([*command, "--proxy", "sst2", "--proxy-data", str(glue)]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["proxy"].startswith("sst2 accuracy 0.")
    assert Path(shown["folder"]).is_dir()
    assert len(_kept(recipe)) == 2


@pytest.mark.slow
def test_two_ranks_choose_what_one_does(recipe: Recipe, config: Path, glue: Path) -> None:
    arguments = ["superlm", "extract", "--config", str(config), "--proxy", "sst2", "--best", "3"]
    arguments += ["--proxy-data", str(glue), "--proxy-learning-rate", "3e-3"]
    found = []
    for launcher in ([], TWO_RANKS):
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "hf_kdnas", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append((done.stdout, [file.read_text(encoding="utf-8") for file in _kept(recipe)]))
        shutil.rmtree(Path(recipe.output_dir) / "proxy")
    assert found[0] == found[1]
    assert found[0][0].count("proxy ") == 1
