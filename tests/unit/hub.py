"""A stand-in for the Hugging Face hub on loopback, for uploads: repositories, LFS batches, a storage server, commits.

The storage is a server of its own, as the hub's is: what is sent there must not carry the token.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_secretsecretsecret"
COMMIT = "c" * 40
LARGE = (".safetensors", ".gguf", "tokenizer.json")


@dataclass
class Hub:
    """What the stand-in knows, what it was asked, and how it is to refuse."""

    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By id: `private`, and `files`, bytes by name."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path, and what was in Authorization."""
    stored: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and message for paths that hold a text."""
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[dict[str, Any]] = field(default_factory=list)
    address: str = ""
    storage: str = ""

    @property
    def sent(self) -> list[str]:
        """Name what was asked that is no mere look."""
        return [f"{method} {path}" for method, path, _ in self.asked if method != "GET"]

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Do what an endpoint does."""
        for part, (status, message) in self.refuse.items():
            if part in path:
                return status, {"error": message}
        if path.startswith("/stored/"):
            self.stored[path.removeprefix("/stored/")] = body
            return 200, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.created.append(asked)
            repo = f"{asked['organization']}/{asked['name']}"
            self.repos[repo] = {"private": asked.get("visibility") == "private", "files": {".gitattributes": b""}}
            return 200, {"url": f"{self.address}/{repo}"}
        if path == "/api/validate-yaml":
            return 200, {}
        if path.endswith("/objects/batch"):
            wanted = json.loads(body)["objects"]
            href = f"{self.storage}/stored/"
            return 200, {"objects": [one | {"actions": {"upload": {"href": href + one["oid"]}}} for one in wanted]}
        owner, name, *rest = path.removeprefix("/api/models/").split("/")
        repo = f"{owner}/{name}"
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}
        if method == "GET":
            files = [{"rfilename": file} for file in self.repos[repo]["files"]]
            return 200, {"id": repo, "sha": "a" * 40, "private": self.repos[repo]["private"], "siblings": files}
        if rest[0] == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular"}
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": [one | {"shouldIgnore": False} for one in files]}
        self._commit(repo, [json.loads(line) for line in body.splitlines()])
        return 200, {"commitUrl": f"{self.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = self.repos[repo]["files"]
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    self.commits.append(value)
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.stored[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub and its storage until the end of the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self._body()
            path = self.path.split("?")[0]
            hub.asked.append((self.command, path, self.headers.get("Authorization", "")))
            status, content = hub.answer(self.command, path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_: object) -> None:
            pass

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.address, hub.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    yield hub
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub without repositories."""
    with serving() as one:
        yield one
