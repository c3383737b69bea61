"""A judge at an address: a server that speaks OpenAI's chat completions and replies as a test wants it to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Asked:
    """What a judge was shown."""

    request: str
    first: str
    second: str


Reply = Callable[[Asked], str | tuple[int, str]]
"""What to say: the text of a reply, or a status and a body."""


class Stub(ThreadingHTTPServer):
    """The server, and what it was sent."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = reply
        self.asked: list[Asked] = []
        self.bodies: list[dict[str, object]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        quoted = re.findall(r"^(?:Request|Answer A|Answer B): (.*)$", body["messages"][0]["content"], re.MULTILINE)
        asked = Asked(*map(json.loads, quoted))
        self.server.asked.append(asked)
        self.server.bodies.append(body)
        self.server.keys.append(self.headers["Authorization"])
        said = self.server.reply(asked) if self.path == "/v1/chat/completions" else (404, "no such path")
        status, text = (
            said if isinstance(said, tuple) else (200, json.dumps({"choices": [{"message": {"content": said}}]}))
        )
        self.send_response(status)
        if status == 302:
            self.send_header("Location", text)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def judging(reply: Reply) -> Iterator[Stub]:
    """Run the server."""
    stub = Stub(reply)
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        stub.server_close()
        thread.join()
