"""What the Hub on the loopback keeps: repositories, users, and what it thinks of a card's metadata."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "other", "unknown")


def git_id(content: bytes) -> str:
    """The name that git has for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """A repository: trees by commit, commits by reference."""

    private: bool = False
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)

    def commit(self, reference: str, tree: dict[str, bytes]) -> str:
        content = [(path, git_id(tree[path])) for path in sorted(tree)]
        sha = hashlib.sha1(f"{len(self.trees)}{content}".encode()).hexdigest()
        self.trees[sha] = tree
        self.references[reference] = sha
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What a reader sees."""
        return self.trees[self.references.get(revision, revision)]


def _user(name: str, role: str, **more: Any) -> dict[str, Any]:
    token = {"displayName": "test", "role": role, **more}
    groups = [{"name": "group", "roleInOrg": "admin"}]
    return {
        "type": "user",
        "name": name,
        "orgs": groups,
        "auth": {"type": "access_token", "accessToken": token},
    }


def _scoped(permissions: list[str]) -> dict[str, Any]:
    entity = {"type": "user", "name": "someone"}
    return {"fineGrained": {"scoped": [{"entity": entity, "permissions": permissions}], "global": []}}


USERS = {
    "hf_writer0000": _user("someone", "write"),
    "hf_reader0000": _user("someone", "read"),
    "hf_finewrite0": _user("someone", "fineGrained", **_scoped(["repo.content.read", "repo.write"])),
    "hf_fineread00": _user("someone", "fineGrained", **_scoped(["repo.content.read"])),
    # The Hub finds out only at the request itself.
    "hf_pretender0": _user("someone", "write"),
}


def wrong_metadata(data: dict[str, Any]) -> Iterator[str]:
    """What the Hub would say of a card's metadata."""
    if data.get("license", "mit") not in LICENCES:
        yield f'"license" must be one of [{", ".join(LICENCES)}]'
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data.get("base_model", "a/b")):
        yield '"base_model" is not valid. Use a model id from hf.co/models.'
    for model in data.get("model-index", []):
        for result in model["results"]:
            if not {"task", "dataset", "metrics"} <= result.keys() or "type" not in result["dataset"]:
                yield '"model-index" is not valid'
