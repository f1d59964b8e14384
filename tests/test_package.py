"""The package as a whole: its public names, its files, what its README promises."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import hf_kdnas
from hf_kdnas import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(start: str) -> list[str]:
    """Lines of the documents' shell blocks that begin with a word."""
    found = {
        line.split("#")[0].strip()
        for document in DOCUMENTS
        for block in blocks(document.read_text(encoding="utf-8"), "bash")
        for line in block.splitlines()
    }
    return sorted(line for line in found if line.startswith(start))


# Public names


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, hf_kdnas; hf_kdnas.InvalidInput; hf_kdnas.load_recipe\n"
        "print(sorted({'torch', 'transformers', 'optuna', 'datasets'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout.replace("'", '"')) == []


@pytest.mark.parametrize("name", hf_kdnas.__all__)
def test_public_names_are_there_and_documented(name: str) -> None:
    value = getattr(hf_kdnas, name)
    if name == "__version__":
        return
    assert inspect.getdoc(value)
    assert value.__module__.startswith(f"hf_kdnas.{hf_kdnas._HOMES[name].rpartition('.')[0]}")
    assert name in dir(hf_kdnas)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        hf_kdnas.nothing_like_it  # noqa: B018


# What each folder may import of the others: those below it, of those beside it only what is named.
_FIRST = {"families", "metrics", "tasks"}
_SECOND = _FIRST | {"distill", "latency"}
_THIRD = _SECOND | {"search", "superlm", "homotopic", "evaluation"}
BELOW = {
    "families": set(),
    "metrics": set(),
    "tasks": {"families", "metrics"},
    "distill": _FIRST,
    "latency": _FIRST,
    "search": _SECOND,
    "superlm": _SECOND,
    "homotopic": _SECOND,
    "evaluation": _SECOND,
    "report": _THIRD,
    "hub": _THIRD | {"report"},
}


def _imported(file: Path) -> set[str]:
    """First parts of the names of ours that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("hf_kdnas.")}


@pytest.mark.parametrize("folder", sorted(BELOW))
def test_imports_point_downwards(folder: str) -> None:
    for file in (Path(hf_kdnas.__file__).parent / folder).rglob("*.py"):
        found = _imported(file)
        assert found & BELOW.keys() <= BELOW[folder] | {folder}, file
        assert not [name for name in found if name.endswith("workflows") or name.startswith("cli")], file


def test_every_folder_has_its_place() -> None:
    assert {path.parent.name for path in Path(hf_kdnas.__file__).parent.glob("*/__init__.py")} == set(BELOW)


def test_subpackages_are_not_hidden_by_functions() -> None:
    import hf_kdnas.distill
    import hf_kdnas.search

    assert isinstance(hf_kdnas.search, ModuleType)
    assert isinstance(hf_kdnas.distill, ModuleType)


# Files


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hf_kdnas.__version__
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "hf_kdnas/__init__.py"


@pytest.mark.parametrize(
    ("file", "exporter"), [("constraints.txt", "optimum"), ("constraints-transformers5.txt", "onnx")]
)
def test_tested_versions_are_within_the_ranges(file: str, exporter: str) -> None:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = {_canonical(pin.name): pin for pin in (Requirement(line) for line in lines if line[:1] != "#")}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras[exporter], *extras["onnxruntime"]]
    for requirement in map(Requirement, wanted):
        (pin,) = pins[_canonical(requirement.name)].specifier
        assert requirement.specifier.contains(pin.version), requirement


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    base = text.split("\ndependencies = [")[1].split("\n]")[0]
    assert all(re.search(r'",\s+# \w', line) for line in base.strip().splitlines())


@pytest.mark.parametrize(
    ("script", "page"),
    [
        ("generate_recipe_reference", "reference"),
        ("generate_example_card", "example"),
        ("generate_benchmarks", "benchmarks"),
        ("generate_layer_maps", "picture"),
    ],
)
def test_generated_pages_are_up_to_date(script: str, page: str) -> None:
    spec = spec_from_file_location(script, ROOT / "docs" / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    generator = module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE.read_text(encoding="utf-8") == getattr(generator, page)(), "run `make docs`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert all((document.parent / link).exists() for link in local), local


@pytest.mark.slow
def test_the_wheel_holds_all_that_belongs_to_the_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "hf_kdnas/py.typed",
        "hf_kdnas/report/report.html.jinja",
        "hf_kdnas/recipes/quickstart.yaml",
        "hf_kdnas/model_cards/kd_nas.md.jinja",
    } <= names
    assert {name.split("/")[0] for name in names} == {
        "hf_kdnas",
        f"hf_kdnas-{hf_kdnas.__version__}.dist-info",
    }


# What the documents promise


def test_the_documents_make_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    used = {command.split()[1] for command in commands("make ")}
    assert {"quickstart", "test", "setup", "check"} <= used <= targets


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_lists_the_targets() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("help", "setup", "quickstart", "test", "test-transformers5", "check", "docs", "bench"):
        assert re.search(rf"^  {target} +[A-Z]", shown, re.M), target


@pytest.mark.parametrize("command", commands("kdnas "))
def test_the_documents_commands_are_understood(command: str, tmp_path: Path) -> None:
    """Recipes are resolved but not run; what needs a run is only parsed."""
    words = command.split()[1:]
    shutil.copy(ROOT / "recipes" / "sst2_minilm.yaml", tmp_path / "my.yaml")
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(io.StringIO()):
        if words[0] in ("search", "distill", "homotopic"):
            assert cli.main([*words, "--print_config"]) == 0
        elif words[0] == "recipes":
            (tmp_path / "my.yaml").unlink()
            assert cli.main(words) == 0
        else:
            _, rest = cli._parser().parse_known_args(words)
            assert rest == []


def test_recipes_in_the_documents_can_be_read(tmp_path: Path) -> None:
    from hf_kdnas import load_recipe

    recipes = [block for document in DOCUMENTS for block in blocks(document.read_text(), "yaml")]
    assert recipes
    for number, block in enumerate(recipes):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        load_recipe(str(path), [])


def test_the_readmes_python_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_model: Any,
    tiny_bert_config: Any,
    tiny_tokenizer: Any,
) -> None:
    """With a tiny teacher, and so a tinier student; everything else as it is printed."""
    from transformers import AutoModelForSequenceClassification

    monkeypatch.chdir(tmp_path)
    make_model(tiny_bert_config).save_pretrained("teacher")
    tiny_tokenizer.save_pretrained("teacher")
    (example,) = (block for block in blocks(README, "python") if "DistillationTrainer" in block)
    printed = "num_hidden_layers=4, hidden_size=192, num_attention_heads=6, intermediate_size=768"
    tiny = "num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32"
    assert printed in example
    exec(compile(example.replace(printed, tiny), "README.md", "exec"), {})
    student = AutoModelForSequenceClassification.from_pretrained("student")
    assert student.config.hidden_size == 16
    assert student.config.num_hidden_layers == 2
