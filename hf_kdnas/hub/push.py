"""Publishing at the end of a run, where its recipe asks for it (`push_to_hub`)."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hf_kdnas.errors import InvalidInput
from hf_kdnas.hub.publish import check_target, publish_run
from hf_kdnas.progress import Narrator

if TYPE_CHECKING:
    from hf_kdnas.recipe import Recipe

# Settings by what `kdnas publish` calls them.
_SETTINGS = {"REPO_ID": "hub_model_id", "--private": "hub_private_repo"}


def check_push(recipe: Recipe) -> None:
    """Refuse, before a run begins, what its recipe can't be published for at the end.

    Args:
        recipe: The recipe, with or without `push_to_hub`.

    Raises:
        InvalidInput: If the token or the repository won't do, or the Hub can't be reached.
    """
    if recipe.push_to_hub:
        try:
            check_target(_repo_id(recipe), private=recipe.hub_private_repo)
        except InvalidInput as error:
            raise _renamed(error) from error


def push_run(recipe: Recipe) -> None:
    """Publish a finished run, where its recipe asks for it.

    Args:
        recipe: The recipe, whose output folder holds the run.

    Raises:
        InvalidInput: If the Hub doesn't take it; the run is whole all the same, which the message says.
    """
    if not recipe.push_to_hub:
        return
    repo_id, narrator = _repo_id(recipe), Narrator()
    try:
        done = publish_run(Path(recipe.output_dir), repo_id, private=recipe.hub_private_repo)
    except InvalidInput as error:
        again = ["kdnas", "publish", recipe.output_dir, repo_id]
        again += ["--private"] if recipe.hub_private_repo else []
        remedy = f"The run is complete. To publish it: {shlex.join(again)}"
        raise _renamed(error, remedy) from error
    for note in done.notes:
        narrator.say(f"note: {note}")
    narrator.say(f"published: {done.url}")


def _repo_id(recipe: Recipe) -> str:
    return recipe.hub_model_id or recipe.name


def _renamed(error: InvalidInput, remedy: str = "") -> InvalidInput:
    """The same error of a recipe's setting, with what else can be done."""
    field = _SETTINGS.get(error.field, error.field)
    return InvalidInput(field, error.given, error.allowed, f"{error.remedy} {remedy}".strip())
