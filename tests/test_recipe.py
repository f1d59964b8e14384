"""Recipes: defaults, overrides, and what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from hf_kdnas.errors import InvalidInput
from hf_kdnas.recipe import (
    DataSection,
    LatencySection,
    Recipe,
    SearchSection,
    TeacherSection,
    TrainingSection,
    load_recipe,
    recipe_fingerprint,
    recipe_options,
    recipe_to_yaml,
)
from hf_kdnas.recipe_checks import check_section
from hf_kdnas.recipe_superlm import SuperLMTrainingSection

SMALL = """\
name: small
teacher:
  model: some/teacher
  fine_tune: {epochs: 2}
data:
  path: some/data
  where: {kind: review}
distillation:
  objectives:
    hidden: {weight: 2, layers: last}
    task:
search:
  proxy: {learning_rate: 3e-4}
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


def test_a_file_keeps_the_defaults_of_what_it_leaves_out(small: str) -> None:
    recipe = load_recipe(small)
    assert recipe.output_dir == "runs/small"
    assert recipe.teacher.fine_tune == TrainingSection(epochs=2.0)
    # The proxy's own default, not that of any training section.
    assert recipe.search.proxy == dataclasses.replace(SearchSection().proxy, learning_rate=3e-4)
    assert recipe.search.episodes == 15


def test_defaults_are_those_of_the_papers() -> None:
    """KD-NAS, arXiv 2303.09639, and AutoDistil, arXiv 2201.12507."""
    search, superlm = SearchSection(), SuperLMTrainingSection()
    assert (search.alpha, search.beta) == (-0.06, 0.6)
    assert (search.epsilon, search.epsilon_step, search.epsilon_floor) == (1.0, 0.05, 0.05)
    assert (search.episodes, search.candidates) == (15, 20)
    assert (search.proxy_fraction, search.proxy.epochs) == (0.3, 4.0)
    assert (superlm.learning_rate, superlm.weight_decay, superlm.max_grad_norm) == (4e-5, 0.01, 1.0)
    assert superlm.random_subnets == 2


def test_a_files_objectives_replace_the_default_ones(small: str) -> None:
    assert load_recipe(small).distillation.objectives == {
        "hidden": {"weight": 2, "layers": "last"},
        "task": {},
    }


def test_a_single_value_stands_for_a_list_of_one(small: str) -> None:
    recipe = load_recipe(small, ["data.text=sentence", "space.num_hidden_layers=3"])
    assert recipe.data.text == ["sentence"]
    assert recipe.space.num_hidden_layers == [3]
    assert recipe.data.where == {"kind": ["review"]}


@pytest.mark.parametrize("text", ["5e-5", "5E-05", "0.00005", "5.0e-5"])
def test_exponents_are_numbers_everywhere(small: str, text: str) -> None:
    section = "distillation.training"
    overrides = [f"{section}.learning_rate={text}", f"{section}.training_arguments.adam_epsilon={text}"]
    training = load_recipe(small, overrides).distillation.training
    assert training.learning_rate == 5e-5
    assert training.training_arguments == {"adam_epsilon": 5e-5}


@pytest.mark.parametrize("text", ["20231101.en", "1.0.2", "5e-5x", "3.nanometres"])
def test_what_only_begins_like_a_number_is_a_text(small: str, text: str) -> None:
    assert load_recipe(small, [f"data.name={text}"]).data.name == text


def test_texts_in_free_settings_stay_texts(small: str) -> None:
    overrides = [
        'data.where={lang: ["no", "2020"], year: [2020]}',
        'distillation.training.training_arguments={save_strategy: "no"}',
    ]
    recipe = load_recipe(small, overrides)
    assert recipe.data.where == {"lang": ["no", "2020"], "year": [2020]}
    assert recipe.distillation.training.training_arguments == {"save_strategy": "no"}


def test_a_folder_of_ones_home(small: str) -> None:
    assert load_recipe(small, ["output_dir=~/run"]).output_dir == str(Path.home() / "run")


def test_overrides_win_and_reach_into_mappings(small: str) -> None:
    recipe = load_recipe(
        small,
        [
            "distillation.objectives.hidden.weight=0.5",
            "teacher.fine_tune.batch_size=8",
            "search.constraints.speedup=3",
        ],
    )
    assert recipe.distillation.objectives["hidden"] == {"weight": 0.5, "layers": "last"}
    assert recipe.teacher.fine_tune == TrainingSection(epochs=2.0, batch_size=8)
    assert recipe.search.constraints.speedup == 3.0


def test_an_override_turns_an_optional_section_on_and_off(small: str) -> None:
    assert load_recipe(small, ["teacher.fine_tune=null"]).teacher.fine_tune is None
    on = load_recipe(small, ["teacher.fine_tune=null", "teacher.fine_tune.epochs=7"]).teacher.fine_tune
    assert on == TrainingSection(epochs=7.0)


def test_an_override_of_one_objective_keeps_the_default_ones(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("teacher: {model: m}\ndata: {path: d}\n", encoding="utf-8")
    objectives = load_recipe(str(path), ["distillation.objectives.hidden.weight=5"]).distillation.objectives
    assert set(objectives) == {"logits", "hidden"}
    assert objectives["hidden"] == {"weight": 5, "layers": "uniform"}


@pytest.mark.parametrize(
    ("override", "field", "parts"),
    [
        ("search.episode=3", "search.episode", ["Did you mean episodes?"]),
        ("distilation.initialisation=slice", "distilation", ["Did you mean distillation?"]),
        ("teacher.fine_tune.epoch=3", "teacher.fine_tune.epoch", ["Did you mean epochs?"]),
        ("search.episodes=many", "search.episodes", ["'many'", "int"]),
        ("search.episodes=2.5", "search.episodes", ["2.5", "int"]),
        ("search.episodes=0", "search.episodes", ["at least 1"]),
        ("search.alpha=0.1", "search.alpha", ["at most 0"]),
        ("data.selection_fraction=0", "data.selection_fraction", ["above 0", "at most 0.5"]),
        ("space.hidden_size=[32, 0]", "space.hidden_size", ["got 0"]),
        ("distillation.initialisation=projct", "distillation.initialisation", ["Did you mean project?"]),
        ("distillation.objectives.hiden={}", "distillation.objectives", ["Did you mean hidden?"]),
        ("distillation.objectives={}", "distillation.objectives", ["at least one"]),
        ("distillation.objectives.task.weight=-1", "distillation.objectives.task.weight", ["0 or more"]),
        ("distillation.objectives.task.weight=0", "distillation.objectives.task.weight", ["above 0"]),
        (
            "distillation.objectives.task.weight=true",
            "distillation.objectives.task.weight",
            ["finite number"],
        ),
        (
            "distillation.objectives.task.weight=.inf",
            "distillation.objectives.task.weight",
            ["finite number"],
        ),
        (
            "distillation.objectives.task.weight={from: 1.0, to: .nan}",
            "distillation.objectives.task.weight",
            ["finite number"],
        ),
        ("teacher.dtype=fp16", "teacher.dtype", ["float16", "bfloat16"]),
        ("distillation.objectives.task=3", "distillation.objectives", ["mapping"]),
        ("search.sampler=tpee", "search.sampler", ["Did you mean tpe?"]),
        ("search.baselines=[tinibert]", "search.baselines", ["Did you mean tinybert?"]),
        ("search.baselines=4L-30H-60F-4A-gelu", "search.baselines", ["divide hidden_size 30"]),
        ("search.finalists=301", "search.finalists", ["300 candidates"]),
        ("compare={objectives: {a: {task: {}}}, seeds: []}", "compare.seeds", ["at least one"]),
        ("compare={objectives: {a: {task: {}}}, seeds: [0, 0]}", "compare.seeds", ["each once"]),
        ("compare={objectives: {a: {task: {}}}, seeds: 4294967296}", "compare.seeds", ["at most 4294967295"]),
        ("compare={objectives: {}}", "compare.objectives", ["at least one set"]),
        ("data.text=[a, b, c]", "data.text", ["one column, or two"]),
        ("teacher.fine_tune=true", "teacher.fine_tune", ["mapping"]),
        ("teacher.model=null", "teacher.model", ["must set it"]),
        ("name=a/b", "name", ["'a/b'"]),
        ("name.first=a", "name.first", ["name holds a value"]),
        ("seed", "seed", ["needs a value"]),
        (
            "distillation.training.training_arguments.learning_rate=1",
            "distillation.training.training_arguments",
            ["Set learning_rate"],
        ),
        *(
            (
                f"distillation.training.training_arguments.{name}=x",
                "distillation.training.training_arguments",
                [f"Set {own} in"],
            )
            for name, own in {
                "objectives": "distillation.objectives",
                "teacher_dtype": "teacher.dtype",
                "run_name": "name",
                "per_gpu_train_batch_size": "batch_size",
            }.items()
        ),
    ],
)
def test_bad_settings_are_named(small: str, override: str, field: str, parts: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_recipe(small, [override])
    assert caught.value.field == field
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize(
    ("content", "part"),
    [("- a\n- b\n", "mapping"), ("a: [1\n", "line 2"), ("name: x\n", "teacher.model"), ("", "mapping")],
)
def test_bad_files_are_refused(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInput, match=part):
        load_recipe(str(path))


def test_a_missing_recipe_names_those_there_are() -> None:
    with pytest.raises(InvalidInput, match=r"Did you mean quickstart\?"):
        load_recipe("quikstart")


def test_python_recipes_are_checked_too() -> None:
    teacher, data = TeacherSection(model="m"), DataSection(path="d")
    assert Recipe(name="a.b-c", teacher=teacher, data=data).output_dir == "runs/a.b-c"
    with pytest.raises(InvalidInput, match=r"search\.proxy\.epochs: got -1; must be above 0"):
        Recipe(teacher=teacher, data=data, search=SearchSection(proxy=TrainingSection(epochs=-1)))
    with pytest.raises(InvalidInput, match=r"distillation\.training\.precision.*Did you mean bf16"):
        Recipe(
            teacher=teacher,
            data=data,
            distillation=dataclasses.replace(
                Recipe(teacher=teacher, data=data).distillation,
                training=TrainingSection(precision="bf61"),  # type: ignore[arg-type]
            ),
        )
    with pytest.raises(InvalidInput, match=r"latency\.rounds"):
        check_section(LatencySection(rounds=1), "latency.")


def test_defaults_are_not_shared() -> None:
    first, second = DataSection(path="d"), DataSection(path="d")
    first.text.append("more")
    assert second.text == ["text"]


def test_yaml_reads_back_as_the_same_recipe(small: str, tmp_path: Path) -> None:
    recipe = load_recipe(
        small, ["data.labels=['no', 'yes']", "distillation.training.training_arguments.optim=sgd"]
    )
    written = tmp_path / "again.yaml"
    written.write_text(recipe_to_yaml(recipe), encoding="utf-8")
    assert load_recipe(str(written)) == recipe


def test_the_fingerprint_tells_recipes_apart_but_not_their_folders(small: str) -> None:
    recipe = load_recipe(small)
    moved = dataclasses.replace(
        recipe, output_dir="elsewhere", report_to=["all"], push_to_hub=True, hub_model_id="a/b"
    )
    assert recipe_fingerprint(moved, "search") == recipe_fingerprint(recipe, "search")
    changed = load_recipe(small, ["search.proxy.epochs=5"])
    assert recipe_fingerprint(changed, "search") != recipe_fingerprint(recipe, "search")


def test_every_setting_says_what_it_means() -> None:
    options = {option.key: option for option in recipe_options()}
    assert all(option.help for option in options.values())
    assert options["search.proxy.epochs"].value == 4.0
    assert options["search.proxy.epochs"].limits_text == "above 0"
    assert options["teacher.fine_tune.epochs"].value == 3.0
    assert options["teacher.model"].value is dataclasses.MISSING
    assert options["space.hidden_size"].type_text == "list of int | null"
    assert options["latency.precision"].type_text == "fp32 | int8"


def test_the_objective_names_are_those_that_exist() -> None:
    from hf_kdnas.distill.objectives import OBJECTIVES
    from hf_kdnas.recipe_checks import OBJECTIVE_NAMES

    assert set(OBJECTIVE_NAMES) == set(OBJECTIVES)


def test_reading_a_recipe_imports_no_torch() -> None:
    code = (
        "import sys; from hf_kdnas.recipe import load_recipe; load_recipe('quickstart');"
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
