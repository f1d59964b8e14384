"""What commands that take a recipe share: their options, their help, and the settings behind them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hf_kdnas.errors import InvalidInput

if TYPE_CHECKING:
    from hf_kdnas.recipe import Recipe


class Parser(argparse.ArgumentParser):
    """A parser with more help that is made only when someone asks for it."""

    more_help: Callable[[], str] = staticmethod(lambda: "")

    def format_help(self) -> str:
        """The usual help, then what `more_help` returns."""
        return super().format_help() + self.more_help()


def add_recipe(command: Parser, text: str = "a recipe's path or name") -> None:
    """A recipe and, behind all other options, any of its settings."""
    command.more_help = recipe_help
    command.add_argument("--config", required=True, metavar="RECIPE", help=text)
    command.set_defaults(takes_settings=True)


def add_run(command: Parser) -> None:
    """The options of a command that begins a run by a recipe."""
    add_recipe(command)
    command.usage = "%(prog)s --config RECIPE [--resume | --overwrite] [--print_config] [--KEY VALUE ...]"
    command.add_argument("--print_config", action="store_true", help="print the resolved recipe and stop")
    add_folder_choice(command)


def add_folder_choice(command: argparse.ArgumentParser) -> None:
    """What to do about a folder that holds something already."""
    folder = command.add_mutually_exclusive_group()
    folder.add_argument(
        "--resume", action="store_true", help="go on in the output folder although the settings have changed"
    )
    folder.add_argument("--overwrite", action="store_true", help="begin again in the output folder")


def recipe_help() -> str:
    """The settings of a recipe."""
    from hf_kdnas.recipe import recipe_options

    lines = [f"  --{option.key}  ({option.type_text})\n      {option.help}" for option in recipe_options()]
    return "\n".join(["", "settings of a recipe, all of which may be given here:", *lines, ""])


def read_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of a command line, with the settings that it gives.

    Raises:
        InvalidInput: If there is no such recipe, or a setting can't be used.
    """
    from hf_kdnas.recipe import load_recipe

    return load_recipe(options.config, _overrides(options.overrides))


def printed(recipe: Recipe, options: argparse.Namespace) -> bool:
    """Print the recipe, where that is what was asked for."""
    from hf_kdnas.processes import talks

    if options.print_config and talks():
        from hf_kdnas.recipe import recipe_to_yaml

        print(recipe_to_yaml(recipe), end="")
    return bool(options.print_config)


def _overrides(tokens: Sequence[str]) -> list[str]:
    """`--key value` and `--key=value` as `key=value`.

    Raises:
        InvalidInput: If a value has no key before it, or a key no value behind it.
    """
    found: list[str] = []
    waiting: str | None = None
    for token in tokens:
        if waiting is not None and not token.startswith("--"):
            found.append(f"{waiting}={token}")
            waiting = None
        elif token.startswith("--") and waiting is None:
            if "=" in token:
                found.append(token[2:])
            else:
                waiting = token[2:]
        elif waiting is None:
            raise InvalidInput("setting", token, "settings look like --KEY VALUE", "Put its key before it.")
        else:
            break
    if waiting is not None:
        raise InvalidInput(waiting, "nothing", "a setting needs a value", f"Write --{waiting} VALUE.")
    return found
