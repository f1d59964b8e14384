"""What no page, message or record may show: a database's user and password, the Hub's tokens."""

from __future__ import annotations

import re

# One slash is a mistake that is refused, with the URL in the message.
_BEFORE_HOST = re.compile(r"(:/{1,2})[^/\s]*@")
_IN_QUERY = re.compile(r"(?<=[?&])(?:user|password)=[^&\s'\"]*&?")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")


def without_credentials(text: str) -> str:
    """The same text, whose URLs name no user and no password, and whose tokens of the Hub are cut off."""
    return _TOKEN.sub("hf_...", _IN_QUERY.sub("", _BEFORE_HOST.sub(r"\1", text)))
