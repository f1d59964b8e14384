"""Talking to the Hub: who is asking, what is tried again, and what went wrong in words."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_kdnas import __version__
from hf_kdnas.errors import InvalidInput
from hf_kdnas.progress import Narrator

_Answer = TypeVar("_Answer")

# Seconds before a request is repeated; uploads are tried several times by huggingface_hub itself before that.
BACK_OFF = (1.0, 2.0, 4.0, 8.0)

# Longest wait that a server may ask for.
_MOST_PATIENCE = 300.0

# A request that took too long, a repository in use or changed since it was read, too many requests.
_PASSING = (408, 409, 412, 429)

# What a transport raises: requests' errors are OSErrors, those of httpx and httpx2 share HTTPError.
_TRANSPORT = (OSError, cast("type[Exception]", HfHubHTTPError.__mro__[1]))

# Permissions of a fine-grained token to make and write repositories of a user or organisation.
_WRITE = "repo.write"


class LostOnTheWay(ConnectionError):
    """What came is not what was sent."""


def check_repo_id(repo_id: str) -> None:
    """See that a repository's name is one that the Hub takes.

    Raises:
        InvalidInput: If it isn't.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InvalidInput(
            "REPO_ID", repo_id, " ".join(str(error).split()), "Give NAME or OWNER/NAME."
        ) from None


def open_session() -> HfApi:
    """The Hub, for requests with the user's token.

    Raises:
        InvalidInput: If there is no token, or the Hub is not to be asked.
    """
    require_online("publishing")
    if get_token() is None:
        raise InvalidInput(
            "token",
            "none",
            "publishing needs a token of the Hub with write access",
            "Make one at https://huggingface.co/settings/tokens, and run hf auth login or set HF_TOKEN.",
        )
    return HfApi(library_name="hf-kdnas", library_version=__version__)


def require_online(purpose: str) -> None:
    """See that the Hub may be asked.

    Raises:
        InvalidInput: If the user has switched that off.
    """
    if constants.HF_HUB_OFFLINE:
        raise InvalidInput(
            "HF_HUB_OFFLINE", "1", f"{purpose} asks the Hub, which this forbids", "Unset it, and try again."
        )


def owned_id(user: dict[str, Any], repo_id: str) -> str:
    """A repository's full name: without an owner it is the user's own.

    Args:
        user: What the Hub says of the token's user.
        repo_id: With or without an owner.
    """
    return repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"


def check_access(user: dict[str, Any], repo_id: str, *, pr: bool) -> None:
    """See that a token may write to a repository, as far as the Hub says so beforehand.

    Args:
        user: What the Hub says of the token and its user.
        repo_id: OWNER/NAME.
        pr: Whether a pull request is to be opened, which anybody may who can write at all.

    Raises:
        InvalidInput: If it can't.
    """
    owner = repo_id.partition("/")[0]
    groups = [each["name"] for each in user.get("orgs", [])]
    if not pr and owner not in (user["name"], *groups):
        others = f" or {', '.join(groups)}" if groups else ""
        raise InvalidInput(
            "REPO_ID",
            repo_id,
            f"it belongs to somebody else: you may publish as {user['name']}{others}",
            "Choose a name of your own; where the repository exists, kdnas publish --pr proposes the files.",
        )
    token = user.get("auth", {}).get("accessToken", {})
    role = token.get("role", "write")
    if role == "fineGrained" and not pr and not _may_write(token.get("fineGrained", {}), repo_id):
        role = f"fineGrained without {_WRITE} for {owner}"
    if role not in ("write", "admin", "fineGrained"):
        raise InvalidInput(
            "token",
            f"a token of the role {role}",
            f"it must have the role write, or be fine-grained with {_WRITE} for {owner}",
            "Make one at https://huggingface.co/settings/tokens, and run hf auth login or set HF_TOKEN.",
        )


def _may_write(permissions: dict[str, Any], repo_id: str) -> bool:
    entities = (repo_id.partition("/")[0], repo_id)
    return any(
        _WRITE in scope.get("permissions", []) and scope.get("entity", {}).get("name") in entities
        for scope in permissions.get("scoped", [])
    )


def patiently(what: str, call: Callable[[], _Answer], narrator: Narrator) -> _Answer:
    """What a call returns, tried again as long as what went wrong may pass.

    Args:
        what: What it does, for people.
        call: Asks the Hub; may be called several times.
        narrator: Tells of each repetition.

    Raises:
        InvalidInput: If the Hub refuses, or doesn't answer in the end.
    """
    for wait in (*BACK_OFF, None):
        try:
            return call()
        except InvalidInput:
            raise
        # Besides those of transports, huggingface_hub raises errors of these kinds of its own.
        except (*_TRANSPORT, ValueError, RuntimeError) as error:
            if wait is None or not any(_may_pass(each) for each in _causes(error)):
                raise explained(what, error) from error
            seconds = max(wait, _asked_patience(error))
            narrator.say(f"  {what}: {_in_words(error)}; once more in {seconds:.0f} s")
            time.sleep(seconds)
    raise AssertionError("the last turn returns or raises")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _may_pass(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in _PASSING or status >= 500
    # An answer cut off or a proxy's; an upload of which a part was lost on the way.
    return isinstance(error, (*_TRANSPORT, json.JSONDecodeError)) or _is_upload(error)


def _is_upload(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "while uploading" in str(error)


def _asked_patience(error: BaseException) -> float:
    """Seconds that the server asks to wait."""
    for each in _causes(error):
        if _status(each) is not None:
            asked = each.response.headers.get("Retry-After", "")  # type: ignore[attr-defined]
            return min(float(asked), _MOST_PATIENCE) if asked.isdigit() else 0.0
    return 0.0


def _in_words(error: BaseException) -> str:
    """The cause of an error, on one line."""
    causes = list(_causes(error))
    told = next((each for each in causes if _status(each) is not None), causes[-1])
    # huggingface_hub puts the server's own words last, behind its advice and the request's number.
    text = " ".join(str(told).split()) or type(told).__name__
    return text if len(text) <= 400 else f"{text[:400]} ..."


def explained(what: str, error: BaseException) -> InvalidInput:
    """An error of the Hub or of the way to it, as one of the user's.

    Args:
        what: What was tried, for people.
        error: What was raised.
    """
    status = next((found for each in _causes(error) if (found := _status(each)) is not None), None)
    if status == 401:
        return InvalidInput(
            "token", "one that the Hub doesn't know", _in_words(error), "Run hf auth login, or set HF_TOKEN."
        )
    if status == 403:
        remedy = (
            f"Give the token write access ({_WRITE} where it is fine-grained), or take another repository."
        )
        return InvalidInput("token", f"one that may not do this ({what})", _in_words(error), remedy)
    remedy = "Nothing is published in part: the same command begins again, and sends only what is missing."
    if status is None and any(isinstance(each, _TRANSPORT) for each in _causes(error)):
        return InvalidInput(
            "network",
            constants.ENDPOINT,
            f"{what}: the Hub can't be reached ({_in_words(error)})",
            f"Look at the network, HF_ENDPOINT and proxies. {remedy}",
        )
    return InvalidInput(what, "no success", f"the Hub says: {_in_words(error)}", remedy)
