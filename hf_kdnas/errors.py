"""Errors that a user can mend: each names the field, what was given, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hf_kdnas.credentials import without_credentials

USER_ERROR = 2
"""Exit code of the command line for a mistake of the user's."""


class InvalidInput(ValueError):
    """A value that the user gave can't be used.

    The command line prints the message alone, without a stack trace, and exits with code 2.

    Args:
        field: The setting, column or argument at fault, as the user wrote it.
        given: The value that was found there.
        allowed: What would have been accepted, as a clause ("allowed are ...", "must be ...").
        remedy: What to do about it, as a sentence.
    """

    def __init__(self, field: str, given: object, allowed: str, remedy: str) -> None:
        self.field = field
        self.given = given
        self.allowed = allowed
        self.remedy = remedy
        super().__init__(without_credentials(f"{field}: got {given!r}; {allowed}. {remedy}"))


@contextmanager
def written_as(key: str, named: str = "") -> Iterator[None]:
    """Name a setting that is refused as the user wrote it.

    Args:
        key: What the user wrote, of its beginning.
        named: What the refusal begins with in its place.
    """
    try:
        yield
    except InvalidInput as error:
        field = f"{key}{error.field.removeprefix(named)}"
        raise InvalidInput(field, error.given, error.allowed, error.remedy) from error


class MissingPackage(InvalidInput):
    """A package that this step needs is not installed.

    Args:
        package: The missing package's name.
        purpose: What it is needed for, as a clause ("to export to ONNX").
        install: The arguments of the `pip install` line that brings it.
    """

    def __init__(self, package: str, purpose: str, install: str) -> None:
        super().__init__(
            package, "nothing", f"this package is needed {purpose}", f"Run: pip install {install}"
        )
