"""A Hub on the loopback: the endpoints that `huggingface_hub` uses to create, upload, list and download models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_ABOVE = 4096
"""Bytes; larger files go through LFS."""


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))

    def commit(self, revision: str, changes: dict[str, bytes | None]) -> str:
        files = {**(self.files(revision) or {}), **{k: v for k, v in changes.items() if v is not None}}
        for name in [k for k, v in changes.items() if v is None]:
            files.pop(name, None)
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.branches[revision], self.commits[sha] = sha, files
        return sha


@dataclass
class Hub:
    """The state of the server, which tests may look into and break."""

    url: str = ""
    writers: dict[str, str] = field(default_factory=lambda: {"hf_good": "org"})
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    """Bytes that went out of each file of a repository."""
    break_next: dict[str, int] = field(default_factory=dict)
    """Method and part of a path to the status its next request gets instead of an answer."""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def answer(self) -> None:
        self.body = self.received()
        self.path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {self.path}")
        for part, status in list(self.hub.break_next.items()):
            if part in f"{self.command} {self.path}":
                del self.hub.break_next[part]
                return self.reply({"error": "broken off"}, status)
        for pattern, name in ROUTES:
            found = re.fullmatch(pattern, f"{self.command} {self.path}")
            if found:
                return getattr(self, name)(*found.groups())
        return self.reply({"error": "no such endpoint"}, 404)

    def received(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return self.hub.writers.get(token)

    def fault(self, status: int, code: str) -> None:
        self.reply({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})

    def repository(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.user() is None):
            self.fault(401 if self.user() is None else 404, "RepoNotFound")
            return None
        return repository

    def writable(self, name: str) -> Repository | None:
        if self.user() is None:
            self.reply({"error": "Invalid username or password."}, 401)
            return None
        if not name.startswith(f"{self.user()}/"):
            self.reply({"error": "You don't have the rights to create a model under this namespace"}, 403)
            return None
        return self.hub.repositories.get(name) or Repository(False)

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or self.user()}/{wanted['name']}"
        if self.writable(name) is None:
            return None
        answer = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            return self.reply({**answer, "error": "You already created this model repo"}, 409)
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private)
        return self.reply(answer)

    def branch(self, name: str, branch: str) -> None:
        repository = self.writable(name)
        if repository is None:
            return None
        if branch in repository.branches:
            return self.reply({"error": "Reference already exists"}, 409)
        repository.branches[branch] = repository.branches["main"]
        return self.reply({})

    def validate(self) -> None:
        self.reply({"errors": [], "warnings": []})

    def whoami(self) -> None:
        self.reply(
            {"name": self.user(), "type": "user"} if self.user() else {"error": "bad token"},
            200 if self.user() else 401,
        )

    def preupload(self, name: str, _: str) -> None:
        if self.writable(name) is None:
            return None
        files = json.loads(self.body)["files"]
        modes = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["size"] > LFS_ABOVE else "regular",
                "shouldIgnore": False,
            }
            for f in files
        ]
        return self.reply({"files": modes})

    def lfs(self, name: str) -> None:
        if self.writable(name) is None:
            return None
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            item = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/blob/{wanted['oid']}"}}
            objects.append(item)
        return self.reply({"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        self.reply({})

    def commit(self, name: str, revision: str) -> None:
        repository = self.writable(name)
        if repository is None:
            return None
        changes: dict[str, bytes | None] = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                changes[value["path"]] = None
        pull = "create_pr=1" in self.requestline
        sha = repository.commit("refs/pr/1" if pull else revision, changes)
        answer = {"commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "success": True}
        return self.reply(
            answer | ({"pullRequestUrl": f"{self.hub.url}/{name}/discussions/1"} if pull else {})
        )

    def info(self, name: str, revision: str | None = None) -> None:
        repository = self.repository(name)
        if repository is None:
            return None
        files = repository.files(revision or "main")
        if files is None:
            return self.fault(404, "RevisionNotFound")
        sha = repository.branches.get(revision or "main", revision or "main")
        siblings = [{"rfilename": path} for path in files]
        return self.reply(
            {"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []}
        )

    def tree(self, name: str, revision: str) -> None:
        repository = self.repository(name)
        if repository is None:
            return None
        files = repository.files(revision)
        if files is None and repository.files(revision.partition("/")[0]) is not None:
            return self.fault(404, "EntryNotFound")  # a folder: no repository here has any
        if files is None:
            return self.fault(404, "RevisionNotFound")
        return self.reply(
            [
                {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for p, d in files.items()
            ]
        )

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.repository(name)
        if repository is None:
            return None
        files = repository.files(revision)
        if files is None:
            return self.fault(404, "RevisionNotFound")
        if path not in files:
            return self.fault(404, "EntryNotFound")
        data = files[path]
        sha = repository.branches.get(revision, revision)
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": sha}
        headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status = 200
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        if self.command == "GET":
            self.hub.sent[path] = self.hub.sent.get(path, 0) + len(data)
        return self.reply(data, status, headers)


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (r"GET /api/whoami-v2", "whoami"),
    (rf"POST /api/models/{NAME}/branch/(.+)", "branch"),
    (rf"POST /api/models/{NAME}/preupload/(.+)", "preupload"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "lfs"),
    (r"PUT /blob/(\w+)", "put"),
    (rf"POST /api/models/{NAME}/commit/(.+)", "commit"),
    (rf"GET /api/models/{NAME}/revision/(.+)", "info"),
    (rf"GET /api/models/{NAME}/tree/(.+)", "tree"),
    (rf"GET /api/models/{NAME}", "info"),
    (rf"(?:HEAD|GET) /{NAME}/resolve/(refs/pr/\d+|[^/]+)/(.+)", "resolve"),
]  # fmt: skip


class FakeHub:
    """`with FakeHub() as hub:` serves on a free port of 127.0.0.1."""

    def __enter__(self) -> Hub:
        hub = Hub()
        handler = type("BoundHandler", (Handler,), {"hub": hub})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()
        return hub

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
