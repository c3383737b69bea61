"""Policies, moderators and a guard for the tests of moderation."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from llmpipe.moderation.log import Log
from llmpipe.moderation.moderator import Moderator
from llmpipe.moderation.opening import layers_of
from llmpipe.moderation.policy import Policy, load

REFUSAL = "Held back by {rule}; {reference}."
TOP = f'refusal: "{REFUSAL}"\n'
BLUNT = f"""\
{TOP}
words: {{rude: [blast, "kill the lights"]}}
rules:
  rude: {{layer: words, category: rude, input: block, output: block, tool: redact}}
  data: {{layer: personal, category: [email, phone, card, key], input: warn, output: redact, tool: redact}}
"""


def policy(folder: Path, text: str) -> Policy:
    path = folder / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def moderator(folder: Path, text: str = BLUNT, **layers: Any) -> Moderator:
    """Return a moderator whose log lies in the folder; `layers` stand for those that load a model."""
    found = policy(folder, text)
    plain = found.model_copy(update=dict.fromkeys(layers))
    return Moderator(found, layers_of(plain, folder) | layers, Log(folder / "log.jsonl"))


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


class GuardStub(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, self.headers.get("Authorization"), body))
        if server.wait_s:
            time.sleep(server.wait_s)
        answer = {"choices": [{"message": {"role": "assistant", "content": server.answer}}]}
        content = json.dumps(answer).encode()
        with suppress(BrokenPipeError):  # who asked did not wait
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def guard() -> Iterator[Any]:
    """Serve a guard that says `answer` until the block ends; `url` is its address, `asked` what it was asked."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), GuardStub)
    server.answer, server.status, server.asked, server.wait_s = "safe", 200, [], 0.0
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
