"""A server that a recipe names is asked, and no other, whatever it says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from llmpipe.server import Server

Seen = list[tuple[str, str | None]]


class Stub(HTTPServer):
    """Notes each request's method and key; sends them to `elsewhere`, where there is one."""

    def __init__(self, elsewhere: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.elsewhere, self.seen = elsewhere, Seen()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        self.server.seen.append((self.command, self.headers.get("Authorization")))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(302 if self.server.elsewhere else 200)
        if self.server.elsewhere:
            self.send_header("Location", self.server.elsewhere)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def other() -> Iterator[Stub]:
    yield from served(Stub())


@pytest.fixture
def asked(other: Stub) -> Iterator[Stub]:
    yield from served(Stub(other.url + "/taken"))


def served(stub: Stub) -> Iterator[Stub]:
    thread = threading.Thread(target=stub.serve_forever, daemon=True)
    thread.start()
    yield stub
    stub.shutdown()
    stub.server_close()


def test_a_redirection_is_not_followed(asked: Stub, other: Stub) -> None:
    """Python 3.11 would ask the other server, and send it the key."""
    status, _ = Server(asked.url, "", key="secret").post("/v1", {"a": 1})
    assert status == 302
    assert asked.seen == [("POST", "Bearer secret")]
    assert other.seen == []


def test_the_key_goes_to_the_server_that_is_named(other: Stub) -> None:
    assert Server(other.url, "", key="secret").post("/v1", {}) == (200, "{}")
    assert other.seen == [("POST", "Bearer secret")]
