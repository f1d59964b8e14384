"""The command line: what it prints, what it refuses, how fast it is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import ModuleType
from unittest.mock import create_autospec

import pytest
import yaml

from hf_kdnas import cli, load_recipe
from hf_kdnas.errors import InvalidInput
from hf_kdnas.recipe import EvaluationSection, LatencySection
from hf_kdnas.resources import recipe_file, recipe_names

RESULTS = {
    "task": {"metric": "accuracy"},
    "teacher": {"architecture": "6L", "quality": 0.9, "latency_ms": 10.0, "parameters": 22_000_000},
    "student": {"architecture": "4L", "quality": 0.88, "latency_ms": 2.5, "parameters": 7_100_000},
    "speedup": 4.0,
    "retained": 0.9778,
    "constraints_met": True,
}

EVALUATED = {
    "model": "runs/my/student",
    "parameters": 7_100_000,
    "seeds": [0],
    "tasks": {"sst2": {"scores": {"validation": {"accuracy": [0.912]}}}},
}


@pytest.fixture
def workflows(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What the command calls; the costly ones do nothing, but refuse arguments that they wouldn't take."""
    from hf_kdnas import workflows

    for name, found in (("search", RESULTS), ("latency", "2.5 ms"), ("evaluate", EVALUATED)):
        monkeypatch.setattr(workflows, name, create_autospec(getattr(workflows, name), return_value=found))
    return workflows


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hf_kdnas", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_is_there_at_once() -> None:
    """It imports nothing but this package and what comes with Python."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from hf_kdnas.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "imported = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*imported - sys.stdlib_module_names, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "search" in ran.stdout
    assert ran.stderr.split() == ["hf_kdnas"]


def test_the_help_of_search_lists_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["search", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "--search.proxy.epochs  (float)" in shown
    assert "--teacher.fine_tune.epochs" in shown


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_parses_through_the_real_command(name: str) -> None:
    ran = run("search", "--config", name, "--print_config")
    assert ran.returncode == 0, ran.stderr
    printed = yaml.safe_load(ran.stdout)
    assert printed["name"] == name
    assert printed["output_dir"] == f"runs/{name}"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_how_to_launch_it(name: str) -> None:
    header = recipe_file(name).read_text(encoding="utf-8").split("\nname:")[0]
    assert all(line.startswith("#") or not line for line in header.splitlines())
    for processes in (1, 4, 16):
        assert f"--num_processes {processes} " in header
    text = recipe_file(name).read_text(encoding="utf-8")
    sections = {"\nstudent:": "distill", "\nsuperlm:": "superlm train", "\nhomotopic:": "homotopic"}
    workflow = next((each for section, each in sections.items() if section in text), "search")
    assert f"-m hf_kdnas {workflow} --config {name}" in header


def test_settings_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["search", "--print_config", "--search.alpha", "-0.07", "--config", "quickstart"]
    arguments += ["--search.beta", "6e-2", "--seed=7", "--data.text", "[a, b]", "--output_dir", "there"]
    assert cli.main(arguments) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["search"]["alpha"] == -0.07
    assert printed["search"]["beta"] == 0.06
    assert printed["seed"] == 7
    assert printed["data"]["text"] == ["a", "b"]
    assert printed["output_dir"] == "there"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--config", "quickstart", "--search.episode", "3"], "Did you mean episodes?"),
        (["search", "--config", "quickstart", "--search.episodes", "x"], "search.episodes"),
        (["search", "--config", "quickstart", "--seed"], "Write --seed VALUE"),
        (["search", "--config", "quickstart", "--seed", "--name", "x"], "Write --seed VALUE"),
        (["search", "--config", "quickstart", "3"], "--KEY VALUE"),
        (["search", "--config", "quikstart"], "Did you mean quickstart?"),
        (["recipes", "show", "quikstart"], "Did you mean quickstart?"),
        (["recipes", "copy", "quickstart", __file__], "it exists"),
        (["recipes", "copy", "quickstart", "/dev/null/quickstart.yaml"], "it can't be written"),
        (["latency", "model", "--rounds", "1"], "at least 5"),
        (["evaluate", "model", "--tasks", "sst-2"], "Did you mean sst2?"),
        (["evaluate", "model", "--seeds"], "seeds: got []"),
        (["evaluate", "no/such/model", "--tasks", "sst2"], "model: got 'no/such/model'"),
        (["report", "no/such/run"], "no results.json"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("kdnas: error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["search"], ["evaluate"], ["nothing"], ["env", "--seed", "3"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_a_mistake_in_a_process_of_its_own_leaves_no_trace() -> None:
    ran = run("search", "--config", "quickstart", "--serach.episodes", "3")
    assert ran.returncode == 2
    assert "Did you mean search?" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_search_prints_what_matters(workflows: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "--config", "quickstart", "--resume", "--output_dir", "there"]) == 0
    recipe = load_recipe("quickstart", ["output_dir=there"])
    workflows.search.assert_called_once_with(recipe, resume=True, overwrite=False)
    shown = capsys.readouterr().out
    for part in ("0.9000", "0.8800", "10.00 ms", "2.50 ms", "22.0 M", "4.00 times", "97.8%"):
        assert part in shown
    assert str(Path("there/report.html")) in shown
    assert "constraints" not in shown


def test_search_says_when_constraints_are_not_met(
    workflows: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    workflows.search.return_value = {**RESULTS, "constraints_met": False}
    assert cli.main(["search", "--config", "quickstart"]) == 0
    assert "No finalist met all constraints" in capsys.readouterr().out


def test_ranks_without_results_print_nothing(
    workflows: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    workflows.search.return_value = {}
    assert cli.main(["search", "--config", "quickstart"]) == 0
    assert capsys.readouterr().out == ""


def test_errors_of_a_workflow_are_messages_too(
    workflows: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    workflows.search.side_effect = InvalidInput("data.text", "x", "columns are a, b", "Choose one.")
    assert cli.main(["search", "--config", "quickstart"]) == 2
    assert capsys.readouterr().err == "kdnas: error: data.text: got 'x'; columns are a, b. Choose one.\n"


def test_an_interrupt_has_its_own_exit_code(
    workflows: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    workflows.search.side_effect = KeyboardInterrupt
    assert cli.main(["search", "--config", "quickstart"]) == 130
    assert "same command" in capsys.readouterr().err


def test_resume_and_overwrite_exclude_each_other() -> None:
    with pytest.raises(SystemExit):
        cli.main(["search", "--config", "quickstart", "--resume", "--overwrite"])


def test_latency_hands_over_its_target(workflows: ModuleType) -> None:
    arguments = ["latency", "student", "--reference", "teacher", "--threads", "2", "--sequence-length", "64"]
    assert cli.main([*arguments, "--revision", "v1", "--reference-revision", "v2"]) == 0
    section = LatencySection(threads=2, sequence_length=64)
    models = {"reference": "teacher", "revision": "v1", "reference_revision": "v2"}
    workflows.latency.assert_called_once_with("student", **models, section=section)


def test_latency_has_the_recipes_defaults(workflows: ModuleType) -> None:
    assert cli.main(["latency", "student"]) == 0
    models = dict.fromkeys(("reference", "revision", "reference_revision"))
    workflows.latency.assert_called_once_with("student", **models, section=LatencySection())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_latency_of_a_run(tiny_run: Path, capsys: pytest.CaptureFixture[str], precision: str) -> None:
    """The teacher's folder has no INT8 file: nor has it one afterwards."""
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    models = [str(tiny_run / "student"), "--reference", str(tiny_run / "teacher")]
    options = ["--sequence-length", "16", "--rounds", "5", "--precision", precision]
    assert cli.main(["latency", *models, *options]) == 0
    shown = capsys.readouterr().out
    assert "speed-up" in shown
    assert f"16 tokens, {precision}" in shown
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before


def test_evaluate_hands_over_what_is_given(workflows: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "student", "--tasks", "sst2", "rte", "--seeds", "7", "--learning-rates", "1e-5"]
    arguments += [
        "--learning-rates",
        "2e-5",
        "3e-5",
        "--revision",
        "v1",
        "--held-out",
        "0.2",
        "--data",
        "glue",
        "--output-dir",
        "out",
    ]
    assert cli.main([*arguments, "--resume", "--published"]) == 0
    section = EvaluationSection(
        revision="v1",
        data="glue",
        tasks=["sst2", "rte"],
        seeds=[7],
        learning_rates=[2e-5, 3e-5],
        held_out=0.2,
    )
    options = {"output_dir": "out", "published": True, "resume": True, "overwrite": False}
    workflows.evaluate.assert_called_once_with("student", section, **options)
    shown = capsys.readouterr().out
    assert "91.2" in shown
    assert "BERT-base" in shown


def test_evaluate_has_the_sections_defaults(
    workflows: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "student"]) == 0
    options = {"output_dir": None, "published": False, "resume": False, "overwrite": False}
    workflows.evaluate.assert_called_once_with("student", EvaluationSection(), **options)
    assert "BERT-base" not in capsys.readouterr().out


def test_report_renders_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(Path(__file__).parent / "report" / "results.json", tmp_path)
    assert cli.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    for name in ("report.html", "README.md"):
        text = (tmp_path / name).read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
        assert "keeps 98.0 % of its teacher's accuracy at 2.82 times its speed" in unescape(text)


@pytest.mark.parametrize("content", ["{}", "[1]", "{", '{"teacher": {}, "student": {}}'])
def test_report_refuses_results_of_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "results.json").write_text(content, encoding="utf-8")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "must be the output folder of a finished search or distillation" in capsys.readouterr().err


def test_recipes_are_listed_shown_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "list"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == recipe_names()
    assert cli.main(["recipes", "show", "quickstart"]) == 0
    shown = capsys.readouterr().out
    assert shown == recipe_file("quickstart").read_text(encoding="utf-8")
    assert cli.main(["recipes", "copy", "quickstart", str(tmp_path)]) == 0
    assert (tmp_path / "quickstart.yaml").read_text(encoding="utf-8") == shown


def test_env_names_versions_and_cpu_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env"]) == 0
    shown = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " " in line.strip()
    )
    assert shown["python"].strip() == sys.version.split()[0]
    assert shown["torch"].strip()
    assert int(shown["cores"]) >= 1


def test_search_says_when_the_teacher_has_no_quality_to_keep(
    workflows: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    workflows.search.return_value = {**RESULTS, "retained": None}
    assert cli.main(["search", "--config", "quickstart"]) == 0
    assert "4.00 times as fast, nothing of its teacher to keep" in capsys.readouterr().out
