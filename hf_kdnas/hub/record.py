"""`kdnas.json`: what a run found, fit to be shared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

import yaml

from hf_kdnas.credentials import without_credentials

# Beside a published student.
RECORD = "kdnas.json"

# Stands before the last part of a path on somebody's disk.
LOCAL = "<local>"

_PATH = re.compile(r"(?:/[^/]+/|~/|[A-Za-z]:[\\/]).*")
_SECRETS = re.compile(r"(token|password|secret|api_key)$")


def shareable(value: Any) -> Any:
    """The same without what is nobody else's business.

    Of full paths on a disk only the last part is left; a database's user and password, the Hub's
    tokens, and settings named like secrets go.

    Args:
        value: Anything that JSON can hold.
    """
    if isinstance(value, Mapping):
        return {
            name: shareable(each)
            for name, each in value.items()
            if not (isinstance(each, str) and _SECRETS.search(str(name)))
        }
    if isinstance(value, list | tuple):
        return [shareable(each) for each in value]
    return _shareable_text(value) if isinstance(value, str) else value


def _shareable_text(text: str) -> str:
    if _PATH.fullmatch(text):
        return f"{LOCAL}/{PureWindowsPath(text).name}"  # which knows both kinds of slashes
    return without_credentials(text)


def shareable_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what results.json holds, its recipe included.

    Args:
        results: What results.json holds.
    """
    recipe = yaml.safe_load(results["recipe"])
    return {
        **shareable({name: each for name, each in results.items() if name != "recipe"}),
        "recipe": yaml.safe_dump(shareable(recipe), sort_keys=False, allow_unicode=True),
    }


def record(results: Mapping[str, Any], files: list[str]) -> dict[str, Any]:
    """What `kdnas.json` holds: the results, the recipe as a mapping, and what was published.

    Args:
        results: What `shareable_results` returned.
        files: The repository's files that publishing made, so that the next one knows them.
    """
    return {**results, "recipe": yaml.safe_load(results["recipe"]), "files": files}
