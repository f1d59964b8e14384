"""Reading, checking and writing recipes: from YAML and dotted overrides to dataclasses and back."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from hf_kdnas.errors import InvalidInput
from hf_kdnas.resources import recipe_file

T = TypeVar("T")


def option(
    default: T,
    help: str,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> T:
    """A field with its help text and the limits of its value.

    Args:
        default: The default; a mutable one is copied.
        help: What the field means.
        above: The value must be greater than this.
        least: The value must not be less than this.
        most: The value must not be greater than this.
    """
    metadata = {"help": help, "above": above, "least": least, "most": most}
    return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with 1.2's floats: `5e-5` is a number, not a text."""


def _mapping_without_repeats(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping; of a key that stands twice, YAML would silently take the last."""
    seen: set[str] = set()
    for key, _ in node.value:
        name = str(key.value)  # a key may be a list or a mapping, which its constructor refuses
        if name in seen and key.tag != "tag:yaml.org,2002:merge":
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {name} stands there twice", key.start_mark
            )
        seen.add(name)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # To its end: yaml asks only whether a value begins so, and 20231101.en is a text.
    re.compile(r"(?:[-+]?(?:\d[\d_]*\.[\d_]*|\.\d+|\d[\d_]*(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.inf|\.nan)$"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class Option:
    """One setting of a recipe.

    Attributes:
        key: Dotted name.
        hint: Its type.
        value: Its value in a given recipe, or the default (dataclasses.MISSING where it has none).
        metadata: `help` and the limits `above`, `least` and `most`.
    """

    key: str
    hint: Any
    value: Any
    metadata: Mapping[str, Any]

    @property
    def help(self) -> str:
        """What the setting means."""
        return str(self.metadata["help"])

    @property
    def type_text(self) -> str:
        """The type in words, such as `list of int | null`."""
        return _type_text(self.hint)

    @property
    def limits_text(self) -> str:
        """The limits in words, such as `above 0, at most 1`; empty where there are none."""
        words = {"above": "above", "least": "at least", "most": "at most"}
        limits = ((word, self.metadata.get(name)) for name, word in words.items())
        return ", ".join(f"{word} {limit}" for word, limit in limits if limit is not None)

    def check(self) -> None:
        """Compare the value with its limits and choices.

        Raises:
            InvalidInput: If it lies outside.
        """
        for value in self.value if isinstance(self.value, list) else [self.value]:
            if get_origin(self.hint) is Literal and value not in get_args(self.hint):
                raise InvalidInput(self.key, value, *_choices(self.hint, value))
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidInput(self.key, value, "must be a finite number", "Change the value.")
            if isinstance(value, int | float) and not self._within(value):
                raise InvalidInput(self.key, value, f"must be {self.limits_text}", "Change the value.")

    def _within(self, value: float) -> bool:
        above, least, most = (self.metadata.get(name) for name in ("above", "least", "most"))
        return (
            (above is None or value > above)
            and (least is None or value >= least)
            and (most is None or value <= most)
        )


def _type_text(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(_type_text(argument) for argument in arguments)
    if origin is list:
        return f"list of {_type_text(arguments[0])}"
    if origin is dict:
        return "mapping" if arguments[1] is Any else f"mapping of {_type_text(arguments[1])}"
    if dataclasses.is_dataclass(hint):
        return "section"
    return "null" if hint is type(None) else "any" if hint is Any else str(hint.__name__)


def _section_of(hint: Any) -> Any:
    """The dataclass that a type holds (perhaps with None beside it), or None."""
    candidates = get_args(hint) or (hint,)
    return next((each for each in candidates if dataclasses.is_dataclass(each)), None)


def walk_options(section: Any, prefix: str = "") -> Iterator[Option]:
    """Every setting of a recipe, in order, section by section.

    Args:
        section: A recipe or a section (values are its own), or the class (values are the defaults).
        prefix: Dotted name of the section, with a dot at its end.
    """
    hints = get_type_hints(section if isinstance(section, type) else type(section))
    for each in dataclasses.fields(section):
        of_class = isinstance(section, type)
        value = _default(each) if of_class else getattr(section, each.name)
        hint, key = hints[each.name], f"{prefix}{each.name}"
        inner = _section_of(hint)
        if inner is None or value is None:
            yield Option(key, hint, value, each.metadata)
        if inner is not None and (value is not None or of_class):
            yield from walk_options(value if dataclasses.is_dataclass(value) else inner, f"{key}.")


def _default(each: dataclasses.Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def default_of(cls: Any, name: str) -> Any:
    """The default of a section's setting."""
    return next(_default(each) for each in dataclasses.fields(cls) if each.name == name)


def nearest(given: str, known: Collection[str]) -> str:
    """A remedy that names the known word nearest to a mistyped one."""
    matches = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"Did you mean {matches[0]}?" if matches else "Choose one of these."


def read_recipe(cls: Any, path_or_name: str, overrides: Sequence[str]) -> Any:
    """Read a YAML recipe into the dataclass `cls`.

    Raises:
        InvalidInput: If there is no such recipe, or a key or value in it can't be used.
    """
    path = recipe_file(path_or_name)
    values = _complete(cls, _read_yaml(path), _defaults(cls), "")
    for override in overrides:
        _override(values, override)
    values = _complete(cls, values, _defaults(cls), "")
    _require(cls, values, "", path)
    return _parse(cls, values)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InvalidInput(
            "config", str(path), f"it can't be read: {error.strerror}", "Give a file that can."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise InvalidInput("config", str(path), f"must be YAML, but {where}", "Mend the file.") from None
    if not isinstance(content, Mapping):
        raise InvalidInput(
            "config",
            str(path),
            "must hold a mapping of settings",
            "See `kdnas recipes show quickstart` for one.",
        )
    return content


def _defaults(cls: Any) -> dict[str, Any]:
    """The defaults of a section as a mapping; settings without a default are left out."""
    values: dict[str, Any] = {}
    hints = get_type_hints(cls)
    for each in dataclasses.fields(cls):
        value, section = _default(each), _section_of(hints[each.name])
        if value is MISSING and section is not None:
            values[each.name] = _defaults(section)
        elif value is not MISSING:
            values[each.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    return values


def _complete(cls: Any, given: Any, defaults: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The given settings of a section with the defaults of the others.

    Raises:
        InvalidInput: If a key is unknown or a section is not a mapping.
    """
    if not isinstance(given, Mapping):
        raise InvalidInput(prefix.rstrip("."), given, "must be a mapping of settings", "Write `key: value`.")
    hints = get_type_hints(cls)
    values = copy.deepcopy(dict(defaults))
    for key, value in given.items():
        if key not in hints:
            raise InvalidInput(
                f"{prefix}{key}",
                value,
                f"there is no such key; {prefix.rstrip('.') or 'a recipe'} has {', '.join(hints)}",
                nearest(str(key), hints),
            )
        section = _section_of(hints[key])
        optional = type(None) in get_args(hints[key])
        if section is None:
            values[key] = _as_hinted(hints[key], value)
        elif value is None and optional:
            values[key] = None
        else:
            inner = values.get(key) or _defaults(section)
            values[key] = _complete(section, {} if value is None else value, inner, f"{prefix}{key}.")
    return values


def _as_hinted(hint: Any, value: Any) -> Any:
    """A single value for a list of one, and `name:` without options for `name: {}`."""
    kinds = [each for each in (hint, *get_args(hint)) if get_origin(each) in (list, dict)]
    if kinds and get_origin(kinds[0]) is list and isinstance(value, str | int | float):
        return [value]
    if kinds and isinstance(value, Mapping) and get_origin(get_args(kinds[0])[1]) is list:
        return {key: each if isinstance(each, list) else [each] for key, each in value.items()}
    if kinds and isinstance(value, Mapping) and get_origin(get_args(kinds[0])[1]) is dict:
        return {key: {} if options is None else options for key, options in value.items()}
    return value


def _override(values: dict[str, Any], override: str) -> None:
    """Apply one `dotted.key=value` in place."""
    key, equals, text = override.partition("=")
    if not equals:
        raise InvalidInput(key, "nothing", "a setting needs a value", f"Write --{key} VALUE.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        value = text
    *path, last = key.split(".")
    target: Any = values
    for index, part in enumerate(path):
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            name = ".".join(path[: index + 1])
            raise InvalidInput(key, value, f"{name} holds a value, not a section", f"Set {name}.")
    target[last] = value


def _require(cls: Any, values: Mapping[str, Any], prefix: str, path: Path) -> None:
    hints = get_type_hints(cls)
    for name, hint in hints.items():
        section = _section_of(hint)
        if values.get(name) is None and type(None) not in get_args(hint):
            raise InvalidInput(
                f"{prefix}{name}", "nothing", "a recipe must set it", f"Add it to {path} or as an override."
            )
        if section is not None and values[name] is not None:
            _require(section, values[name], f"{prefix}{name}.", path)


def read_section(cls: Any, values: Any, key: str) -> Any:
    """A section that stands within a free setting, such as one of `superlm.spaces`.

    Args:
        cls: Its dataclass.
        values: What was given.
        key: Its dotted name, for the message.

    Raises:
        InvalidInput: If a key or value in it can't be used.
    """
    complete = _complete(cls, values, _defaults(cls), f"{key}.")
    try:
        return _parse(cls, complete)
    except InvalidInput as error:
        raise InvalidInput(f"{key}.{error.field}", error.given, error.allowed, error.remedy) from None


def _parse(cls: Any, values: Mapping[str, Any]) -> Any:
    """Check the types and make the dataclasses."""
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    try:
        namespace = parser.parse_object(copy.deepcopy(dict(values)))  # which it changes
    except ArgumentError as error:
        raise _type_error(cls, values, str(error)) from None
    return _as_given(cls(**parser.instantiate(namespace).as_dict()), values)


def _as_given(section: Any, values: Mapping[str, Any]) -> Any:
    """A section whose free settings, whose type is Any somewhere, are what was given.

    jsonargparse reads texts in them once more: "no" would become False.
    """
    hints, given = get_type_hints(type(section)), {}
    for name, value in values.items():
        if isinstance(value, Mapping) and _section_of(hints[name]) is not None:
            given[name] = _as_given(getattr(section, name), value)
        elif "Any" in str(hints[name]):
            given[name] = value
    return dataclasses.replace(section, **given)


def _type_error(cls: Any, values: Any, message: str) -> InvalidInput:
    """Say in our words what jsonargparse refused."""
    match = re.search(r'key "([\w.]+)"', message)
    key = match[1] if match else "recipe"
    expected: Any = cls
    for part in key.split(".") if match else ():
        section = _section_of(expected)
        expected = get_type_hints(section)[part] if section is not None else None
        values = values.get(part) if isinstance(values, Mapping) else None
    if get_origin(expected) is Literal:
        return InvalidInput(key, values, *_choices(expected, values))
    section = _section_of(expected) if match else None
    if section is not None and isinstance(values, Mapping):
        # Of a section that may be null, jsonargparse names the section alone: look inside.
        try:
            _parse(section, values)
        except InvalidInput as inner:
            return InvalidInput(f"{key}.{inner.field}", inner.given, inner.allowed, inner.remedy)
    allowed = f"its type is {_type_text(expected)}" if match else " ".join(message.split())
    return InvalidInput(key, values, allowed, "Change the value.")


def _choices(literal: Any, given: Any) -> tuple[str, str]:
    """What a Literal allows, and the remedy for something else."""
    choices = get_args(literal)
    return f"allowed are {', '.join(choices)}", nearest(str(given), choices)


class _Dumper(yaml.SafeDumper):
    """Lists of plain values on one line."""


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(list, _represent_list)


def to_yaml(values: Mapping[str, Any]) -> str:
    """Settings as YAML, in their own order."""
    text: str = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def fingerprint(values: Mapping[str, Any], leave_out: Collection[str]) -> str:
    """SHA-256 of settings, independent of their order, as hexadecimal digits."""
    kept = {key: value for key, value in values.items() if key not in leave_out}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
