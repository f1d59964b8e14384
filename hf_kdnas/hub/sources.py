"""Whom a student is from: its teacher and data as the Hub knows them, never a path on somebody's disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from hf_kdnas.resources import resolve_path
from hf_kdnas.tables import BUILDERS, COMPRESSIONS

if TYPE_CHECKING:
    from hf_kdnas.recipe import TeacherSection

_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")

# What a card says of a licence: where it is `other`, its name and place stand beside it.
_LICENCE = ("license", "license_name", "license_link")


def is_hub_id(name: str) -> bool:
    """Whether a recipe's model or data set is a repository on the Hub, not a path.

    Args:
        name: As the recipe says it.
    """
    looks_like_one = _HUB_ID.fullmatch(name) is not None and PurePosixPath(name).suffix not in (
        *BUILDERS,
        *COMPRESSIONS,
    )
    return looks_like_one and not Path(name).exists()


def hub_teacher(results: Mapping[str, Any]) -> str | None:
    """The teacher's Hub id, or None: a path on somebody's disk is never a `base_model`.

    Args:
        results: What results.json holds, or its like.
    """
    teacher = results["teacher"]
    names = (teacher["base_model"], teacher["model"])
    return next((name for name in names if name and is_hub_id(name)), None)


def base_model(results: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that name the teacher.

    Of the relations that the Hub knows (adapter, merge, quantized, finetune) a student's is the last:
    its weights follow from the teacher's by training.

    Args:
        results: What results.json holds, or its like.
    """
    teacher = hub_teacher(results)
    return {"base_model": teacher, "base_model_relation": "finetune"} if teacher else {}


def teacher_name(results: Mapping[str, Any]) -> str:
    """The teacher as a reader may know it: its Hub id, else the last part of its path."""
    return hub_teacher(results) or PurePosixPath(results["teacher"]["model"].removeprefix("package:")).name


def teacher_revision(results: Mapping[str, Any]) -> str:
    """The commit that the teacher was loaded from, in short, or what was asked for; else empty."""
    return _revision(results["teacher"], "")


def adapter_name(results: Mapping[str, Any]) -> str | None:
    """The adapter that was merged into the teacher, with its revision; None where there was none."""
    teacher = results["teacher"]
    adapter, revision = (
        teacher.get("adapter"),
        _revision(teacher, "adapter_"),
    )  # results of older versions lack it
    if adapter is None:
        return None
    name: str = adapter if is_hub_id(adapter) else PurePosixPath(adapter).name
    return f"{name} (revision {revision})" if revision else name


def _revision(teacher: Mapping[str, Any], prefix: str) -> str:
    # Results of older versions lack some of these.
    return (teacher.get(f"{prefix}commit") or "")[:12] or teacher.get(f"{prefix}revision") or ""


def hub_dataset(results: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The data set's Hub id and configuration, where it is on the Hub."""
    data = yaml.safe_load(results["recipe"]).get("data", {})
    path, configuration = data.get("path", ""), data.get("name")
    if PurePosixPath(results["task"]["dataset"]).is_absolute():
        return None, None  # a path that was there when the run read it
    if path in BUILDERS.values():
        return None, None  # files of this type, by data.data_files
    if path.startswith("data:glue/"):
        path, configuration = "nyu-mll/glue", path.removeprefix("data:glue/")
    return (path, configuration) if is_hub_id(path) else (None, None)


def dataset_name(results: Mapping[str, Any]) -> str:
    """The data set as a reader may know it."""
    dataset, configuration = hub_dataset(results)
    if dataset:
        return f"{dataset} ({configuration})" if configuration else dataset
    return PurePosixPath(results["task"]["dataset"]).name.split(".")[0]


def licence(results: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher's licence, as metadata; empty where it isn't known. Of the data's nothing is claimed.

    Args:
        results: What results.json holds, or its like.
    """
    found: dict[str, Any] = results["teacher"].get("license", {})  # results of older versions lack it
    return found


def hub_commit(name: str, revision: str | None, file: str = "config.json") -> str | None:
    """The commit that a model was loaded from, as the Hub's cache knows it; None for folders of one's own.

    Args:
        name: Folder or Hub id.
        revision: What was asked for.
        file: One that was loaded.
    """
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(resolve_path(name), file, revision=revision, local_files_only=True)
    except OSError:
        return None
    found = re.search(r"/snapshots/([0-9a-f]{40})/", Path(path or "").as_posix())
    return found[1] if found else None


def teacher_licence(section: TeacherSection) -> dict[str, str]:
    """What the teacher's own card says of its licence; empty where there is none, or it can't be read.

    Args:
        section: The recipe's teacher.
    """
    own = _licence_of(section.model, section.revision)
    return own or (_licence_of(section.base_model, None) if section.base_model else {})


def _licence_of(name: str, revision: str | None) -> dict[str, str]:
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(resolve_path(name), "README.md", revision=revision)
    except OSError:  # no card, no such repository, no network: a run doesn't fail for that
        return {}
    return {} if path is None else _licence_in(Path(path).read_text(encoding="utf-8", errors="replace"))


def _licence_in(card: str) -> dict[str, str]:
    front = re.match(r"---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    try:
        data = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return {}
    if not isinstance(data, dict) or not isinstance(data.get("license"), str):
        return {}
    return {name: str(data[name]) for name in _LICENCE if data.get(name)}
