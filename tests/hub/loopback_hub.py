"""As much of the Hub's API as its clients need, on the loopback, with faults on request."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from loopback_repos import USERS, Repo, git_id, wrong_metadata

LARGE = (".safetensors", ".onnx", ".bin", ".parquet")

# What may happen to a request: an answer that says so, a connection cut before or after it was acted upon,
# a byte that is another on the way.
FAULTS = ("429", "500", "reset", "lost", "checksum")


class Hub(ThreadingHTTPServer):
    """The server; `requests` is what it was asked, `fault` what befalls the request of a number, once.

    `patience` is how long it tells those to wait that ask too much.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.fault: tuple[int, str] | None = None
        self.persistent = False
        self.patience = "0"
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def store(self) -> str:
        """Where large files are: on another host, which gets no token."""
        return f"http://localhost:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the game, errors of this server are not."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, ValueError)):
            self.errors.append(traceback.format_exc())

    def begin(self, fault: tuple[int, str] | None = None, *, persistent: bool = False) -> None:
        """Count requests anew; from the given one on, or at it alone, something happens."""
        self.requests.clear()
        self.fault, self.persistent = fault, persistent

    def take(self, request: str) -> str:
        """Note a request; the fault that befalls it."""
        with self.lock:
            self.requests.append(request)
            if self.fault is None:
                return ""
            place, kind = self.fault
            number = len(self.requests) - 1
            return kind if number == place or (self.persistent and number > place) else ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.route, self.query = url.path, parse_qs(url.query)
        self.damaged = False
        fault = self.server.take(f"{self.command} {self.route}")
        if fault == "reset":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self._cut()
            return
        body = self._body()
        if fault in ("429", "500"):
            wait = {"Retry-After": self.server.patience} if fault == "429" else {}
            self._send(int(fault), b"<html>not now</html>", wait)
            return
        self.damaged = fault == "checksum"
        if fault == "lost":
            self._send = lambda *arguments, **more: self._cut()  # type: ignore[method-assign]
        with self.server.lock:
            for method, pattern, act in _ROUTES:
                found = re.fullmatch(pattern, self.route)
                if found and self.command in method:
                    act(
                        self,
                        body,
                        **{name: unquote(value or "") for name, value in found.groupdict().items()},
                    )
                    return
            self._json(404, {"error": "Not Found"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _cut(self) -> None:
        """Reset the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(
            status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        self._json(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message, **headers})

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _may_write(self, repo: str) -> bool:
        user = USERS.get(self._token())
        if user is None:
            self._refuse(401, "", "Invalid username or password.")
            return False
        names = [user["name"], *(each["name"] for each in user["orgs"])]
        if self._token() in ("hf_pretender0", "hf_reader0000") or repo.partition("/")[0] not in names:
            self._refuse(403, "", "you don't have the rights to write to this repository")
            return False
        return True

    def _found(self, repo: str) -> Repo | None:
        """A repository that the reader may see."""
        found = self.server.repos.get(repo)
        if found is None or (found.private and self._token() not in USERS):
            self._refuse(404, "RepoNotFound", "Repository not found")
            return None
        return found

    def whoami(self, body: bytes) -> None:
        user = USERS.get(self._token())
        if user is None:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        else:
            self._json(200, user)

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        user = USERS.get(self._token(), {"name": ""})
        repo = f"{asked.get('organization') or user['name']}/{asked['name']}"
        if not self._may_write(repo):
            return
        url = {"url": f"{self.server.endpoint}/{repo}", "id": repo}
        if repo in self.server.repos:
            self._json(409, {"error": "You already created this model repo", **url})
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.repos[repo] = Repo(private)
        self.server.repos[repo].commit("main", {".gitattributes": b"*.onnx filter=lfs\n"})
        self._json(200, url)

    def branch(self, body: bytes, repo: str, branch: str) -> None:
        found = self._found(repo)
        if found is None or not self._may_write(repo):
            return
        if branch in found.references:
            self._json(409, {"error": f"Reference already exists: {branch}"})
            return
        found.references[branch] = found.references["main"]
        self._json(200, {})

    def validate(self, body: bytes) -> None:
        found = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)
        try:
            errors = list(wrong_metadata(yaml.safe_load(found[1]) if found else {}))
        except (yaml.YAMLError, AttributeError, TypeError) as error:
            errors = [f"invalid YAML: {error}"]
        self._json(400 if errors else 200, {"errors": [{"message": each} for each in errors], "warnings": []})

    def info(self, body: bytes, kind: str, repo: str, revision: str | None = None) -> None:
        found = self._found(repo)
        if found is None:
            return
        sha = found.references.get(revision or "main", revision)
        if sha not in found.trees:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [
            {"rfilename": path, **({"size": each["size"], "blobId": each["oid"]} | _large(each))}
            for path, each in self._tree(found, sha).items()
        ]
        answer = {"_id": repo, "id": repo, "modelId": repo, "sha": sha, "private": found.private}
        card = found.trees[sha].get("README.md", b"").decode()
        front = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
        try:
            data = yaml.safe_load(front[1]) if front else {}
        except yaml.YAMLError:
            data = {}
        answer |= {"cardData": data, "tags": [], "pipeline_tag": data.get("pipeline_tag")}
        self._json(200, {**answer, "siblings": siblings, "downloads": 0, "gated": False, "disabled": False})

    def _tree(self, repo: Repo, sha: str) -> dict[str, dict[str, Any]]:
        found = {}
        for path, content in sorted(repo.trees[sha].items()):
            found[path] = {"type": "file", "path": path, "oid": git_id(content), "size": len(content)}
            if content.startswith(b"version https://git-lfs"):
                oid = content.split(b"sha256:")[1][:64].decode()
                size = len(self.server.large[oid])
                found[path] |= {"size": size, "lfs": {"oid": oid, "size": size, "pointerSize": len(content)}}
        return found

    def tree(self, body: bytes, kind: str, repo: str, revision: str, folder: str = "") -> None:
        found = self._found(repo)
        if found is None:
            return
        sha = found.references.get(revision, revision)
        if sha not in found.trees:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        folder = folder.strip("/")
        inside = {
            path: each
            for path, each in self._tree(found, sha).items()
            if not folder or path.startswith(f"{folder}/")
        }
        if folder and not inside:
            self._refuse(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            return
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, Any] = {}
        for path, each in inside.items():
            parts = path.removeprefix(f"{folder}/" if folder else "").split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                name = "/".join([*([folder] if folder else []), *parts[:depth]])
                entries[name] = {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
            if recursive or len(parts) == 1:
                entries[path] = each
        self._json(200, list(entries.values()))

    def paths_info(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        found = self._found(repo)
        if found is None:
            return
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode()).get("paths", [])
        tree = self._tree(found, found.references.get(revision, revision))
        self._json(200, [tree[path] for path in paths if path in tree])

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        found = self._found(repo)
        if found is None or not (self.query.get("create_pr") or self._may_write(repo)):
            return
        tree = self._tree(found, found.references[revision])
        files = []
        for asked in json.loads(body)["files"]:
            there = tree.get(asked["path"])
            oid = there and there.get("lfs", {}).get("oid", there["oid"])
            mode = "lfs" if asked["path"].endswith(LARGE) else "regular"
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json(200, {"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        objects = []
        for asked in json.loads(body)["objects"]:
            if asked["oid"] not in self.server.large:
                upload = {"href": f"{self.server.endpoint}/lfs/{asked['oid']}"}
                asked["actions"] = {"upload": upload, "verify": {"href": f"{self.server.endpoint}/verify"}}
            objects.append(asked)
        self._json(200, {"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        body = _damaged(body) if self.damaged else body
        if hashlib.sha256(body).hexdigest() != oid:
            self._send(400, b"<Error><Code>BadDigest</Code></Error>")
            return
        self.server.large[oid] = body
        self._send(200, b"")

    def verify(self, body: bytes) -> None:
        asked = json.loads(body)
        right = len(self.server.large.get(asked["oid"], b"")) == asked["size"]
        self._json(200 if right else 404, {})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        found = self._found(repo)
        pr = bool(self.query.get("create_pr"))
        if found is None or not (pr or self._may_write(repo)):
            return
        if revision not in found.references:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        lines = [json.loads(line) for line in body.splitlines()]
        tree = dict(found.files(revision))
        for line in lines:
            key, value = line["key"], line["value"]
            if (
                key == "header"
                and value.get("parentCommit", found.references[revision]) != (found.references[revision])
            ):
                self._refuse(412, "", "A commit has happened since. Please refresh and try again.")
                return
            if key == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.server.large:
                    self._refuse(400, "", "Your push was rejected: LFS pointers to files that do not exist")
                    return
                size = len(self.server.large[value["oid"]])
                text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {size}\n"
                tree[value["path"]] = text.encode()
            elif key == "deletedFile":
                del tree[value["path"]]
        reference = f"refs/pr/{len(found.references)}" if pr else revision
        sha = found.commit(reference, tree)
        url = f"{self.server.endpoint}/{repo}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}"}
        self._json(200, {**answer, "pullRequestUrl": f"{url}/discussions/1" if pr else None})

    def resolve(self, body: bytes, kind: str, repo: str, revision: str, path: str) -> None:
        found = self._found(repo)
        if found is None:
            return
        sha = found.references.get(revision, revision)
        if sha not in found.trees:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        headers = {"X-Repo-Commit": sha}
        entry = self._tree(found, sha).get(path)
        if entry is None:
            self._refuse(404, "EntryNotFound", "Entry not found", **headers)
            return
        if "lfs" in entry:
            oid = entry["lfs"]["oid"]
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(entry["size"])}
            self._send(302, b"", {**headers, "Location": f"{self.server.store}/cdn/{oid}"})
            return
        self._file(found.trees[sha][path], {**headers, "ETag": f'"{entry["oid"]}"'})

    def cdn(self, body: bytes, oid: str) -> None:
        assert not self._token()
        self._file(self.server.large[oid], {"ETag": f'"{oid}"'})

    def _file(self, content: bytes, headers: dict[str, str]) -> None:
        if self.headers.get("If-None-Match") == headers["ETag"]:
            self._send(304, b"", headers)
            return
        content = _damaged(content) if self.damaged else content
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers |= {"Accept-Ranges": "bytes"}
        if asked is None:
            self._send(200, content, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers)


def _damaged(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:] if content else content


def _large(entry: dict[str, Any]) -> dict[str, Any]:
    if "lfs" not in entry:
        return {}
    return {"lfs": {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 130}}


_ID = r"(?P<repo>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_ID}"
_ROUTES = [
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), r"/api/validate-yaml", _Handler.validate),
    (("POST",), rf"/api/models/{_ID}/branch/(?P<branch>[^/]+)", _Handler.branch),
    (("POST",), rf"/api/models/{_ID}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (("POST",), rf"/api/models/{_ID}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (("GET",), _API, _Handler.info),
    (("GET",), rf"{_API}/revision/(?P<revision>[^/]+)", _Handler.info),
    (("GET",), rf"{_API}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", _Handler.tree),
    (("POST",), rf"{_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (("POST",), rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), r"/lfs/(?P<oid>[0-9a-f]+)", _Handler.upload),
    (("POST",), r"/verify", _Handler.verify),
    (("GET", "HEAD"), r"/cdn/(?P<oid>[0-9a-f]+)", _Handler.cdn),
    (
        ("GET", "HEAD"),
        rf"/(?P<kind>datasets/)?{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        _Handler.resolve,
    ),
]


def put(hub: Hub, repo: str, files: dict[str, bytes], *, private: bool = False) -> str:
    """Commit files to a repository as somebody else would, past the API."""
    found = hub.repos.setdefault(repo, Repo(private))
    return found.commit("main", {**(found.files() if found.references else {}), **files})
