"""Hub sources against a local server that speaks the hub's protocol and serves a real model.

Proves that the newest commit is locked by the first run, that the lock is kept when the hub moves on, and that a hub
that cannot be reached gives a plain error.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.real.shared import STORIES, needs_shared

LLMPIPE = str(Path(sys.executable).with_name("llmpipe"))
FIRST, SECOND = "1" * 40, "2" * 40


class Hub(BaseHTTPRequestHandler):
    """Three endpoints: what the newest commit is, which files it has, and a file at a commit."""

    newest = FIRST
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        type(self).asked.append(self.path)
        path = self.path.split("?")[0]
        if path.startswith("/api/models/tiny/stories/tree/"):
            files = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in STORIES.iterdir()
            ]
            self._send(200, json.dumps(files).encode(), with_body)
            return
        if path.startswith("/api/models/tiny/stories"):
            revision = path.partition("/revision/")[2] or type(self).newest
            names = [{"rfilename": file.name} for file in STORIES.iterdir()]
            self._send(200, json.dumps({"id": "tiny/stories", "sha": revision, "siblings": names}).encode(), with_body)
            return
        _, _, rest = path.partition("/tiny/stories/resolve/")
        revision, _, name = rest.partition("/")
        file = STORIES / name
        if not rest or not file.is_file():
            self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": revision})
            return
        content = file.read_bytes()
        commit = type(self).newest if revision == "main" else revision
        self._send(200, content, with_body, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _send(self, code: int, content: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Serve the stub on loopback; yields the environment that sends llmpipe there."""
    Hub.newest, Hub.asked = FIRST, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    server.shutdown()


def teach(run: Path, environment: dict[str, str], *extra: str) -> subprocess.CompletedProcess[str]:
    data = run.parent / "chat.jsonl"
    rows = [{"prompt": f"Say {word}", "completion": word} for word in "one two three four five six".split()]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [LLMPIPE, "sft", "--run", str(run), "--model", "hub:tiny/stories", "--data", str(data)]
    command += ["--set", "trainer.max_steps=1", "--set", "held_out.share=0", *extra]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)


@needs_shared
def test_the_first_run_locks_the_commit(tmp_path: Path, hub: dict[str, str]) -> None:
    done = teach(tmp_path / "run", hub)
    assert done.returncode == 0, done.stderr
    assert f"tiny/stories is locked at commit {FIRST[:12]}" in done.stderr
    assert json.loads((tmp_path / "run" / "hub.json").read_text(encoding="utf-8")) == {"model:tiny/stories": FIRST}
    Hub.newest, Hub.asked = SECOND, []
    again = teach(tmp_path / "run", hub, "--set", "trainer.learning_rate=1e-4")
    assert again.returncode == 0, again.stderr
    assert "locked at" not in again.stderr
    assert not any(SECOND in path or "/resolve/main/" in path for path in Hub.asked)


@needs_shared
def test_a_hub_out_of_reach_is_said_plainly(tmp_path: Path, hub: dict[str, str]) -> None:
    done = teach(tmp_path / "run", hub | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert done.returncode == 1
    assert "can the hub be reached?" in done.stderr
    assert "Traceback" not in done.stderr


@needs_shared
def test_what_was_fetched_runs_without_network(tmp_path: Path, hub: dict[str, str]) -> None:
    (tmp_path / "chat.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: x\nstages:\n  chat: {kind: sft, model: {hub: tiny/stories}, data: {path: chat.jsonl},"
        " held_out: {share: 0}, trainer: {max_steps: 1}}\n",
        encoding="utf-8",
    )
    options = {"capture_output": True, "text": True, "encoding": "utf-8", "cwd": tmp_path}
    fetched = subprocess.run([LLMPIPE, "plan", str(recipe), "--run", "run", "--prefetch"], env=hub, **options)
    assert fetched.returncode == 0, fetched.stderr
    assert f"tiny/stories  model at commit {FIRST[:12]}, 1.0 MB" in fetched.stderr
    Hub.newest, Hub.asked = SECOND, []
    alone = hub | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([LLMPIPE, "run", str(recipe), "--run", "run"], env=alone, **options)
    assert done.returncode == 0, done.stderr
    assert Hub.asked == []
