"""A small web on this machine, and a guard that lets requests to it pass: neither a recipe nor a model can do that."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest

from llmpipe.tools import guard

Answer = Callable[[BaseHTTPRequestHandler], None]


def page(body: str | bytes, kind: str = "text/html; charset=utf-8", **headers: str) -> Answer:
    """Answer with a page; `Content_Encoding="gzip"` names a header."""
    data = body.encode() if isinstance(body, str) else body
    given = {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **given}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)

    return answer


def moved(where: str, status: int = 302) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Location", where)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@dataclass
class Web:
    """A running server; `asked` has the path and the headers of each request."""

    port: int
    pages: Any = field(default_factory=dict)  # answers by path: a dictionary, or what has its `get`
    asked: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running(
    pages: Mapping[str, Answer] | None = None, wrap: Callable[[socket.socket], socket.socket] | None = None
) -> Iterator[Web]:
    """Serve pages by their path until the block ends; `wrap` puts TLS around the socket."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.asked.append((self.path, dict(self.headers)))
            answer = web.pages.get(urlsplit(self.path).path)
            if answer is None:
                self.send_error(404)
            else:
                answer(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that went away is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    if wrap is not None:
        server.socket = wrap(server.socket)
    web = Web(server.server_port, dict(pages or {}))
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


def allow(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests to this server pass the guard, and to no other that is not public."""

    def allowed(machine: str, port: int) -> bool:
        return (machine, port) == ("127.0.0.1", web.port) or guard.is_public(machine)

    monkeypatch.setattr(guard, "allowed", allowed)
