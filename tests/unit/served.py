"""The app on a port of its own, in a thread: what a browser or a client of another library talks to."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from llmpipe.talk.engine import Engine
from llmpipe.talk.kit import Kit
from llmpipe.talk.memory import Memory
from llmpipe.talk.serve.app import create_app
from llmpipe.talk.serve.connection import Server
from llmpipe.talk.serve.guard import Limits

TOKEN = "token-of-the-tests"


@dataclass
class Served:
    """A running server; `link` signs a browser in, once."""

    port: int
    app: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def link(self) -> str:
        return f"{self.url}/signin?code={self.app.state.signin.code()}"

    def ask(self, method: str, path: str, content: Any = None) -> tuple[int, Any]:
        """Return status and JSON; of JSON lines a list."""
        connection = self.begin(method, path, content)
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        lines = "ndjson" in reply.headers.get("Content-Type", "")
        return reply.status, [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)

    def begin(self, method: str, path: str, content: Any = None) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        connection.request(method, path, None if content is None else json.dumps(content), headers)
        return connection


@contextmanager
def served(
    engines: Mapping[str, Engine],
    memory: Memory | None = None,
    limits: Limits | None = None,
    kit: Kit | None = None,
) -> Iterator[Served]:
    """Serve until the block ends."""
    app = create_app(engines, memory=memory, limits=limits or Limits(grace_s=1), token=TOKEN, kit=kit)
    with listening(app) as port:
        yield Served(port, app)


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """Serve an app until the block ends; gives the port."""
    server = Server(app)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield taken.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
