"""A web on this machine: a search with SearXNG's API, and the pages that it finds."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from llmpipe.tools import guard


class Web:
    """`pages` are titles and texts by path; `asked` has the queries, `read` the paths that were fetched."""

    def __init__(self, address: str, pages: Mapping[str, tuple[str, str]]) -> None:
        self.address, self.pages = address, dict(pages)
        self.asked: list[str] = []
        self.read: list[str] = []

    def url(self, path: str) -> str:
        return f"{self.address}{path}"


@contextmanager
def web(monkeypatch: pytest.MonkeyPatch, pages: Mapping[str, tuple[str, str]]) -> Iterator[Web]:
    """Serve pages, and let the tools reach them."""
    found: Web

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == "/search":
                found.asked.append(parse_qs(parts.query)["q"][0])
                rows = [
                    {"title": title, "url": found.url(path), "content": text[:200]}
                    for path, (title, text) in found.pages.items()
                ]
                self.reply("application/json", json.dumps({"results": rows}))
                return
            found.read.append(parts.path)
            title, text = found.pages.get(parts.path, ("", ""))
            if not text:
                self.send_error(404)
                return
            body = "".join(f"<p>{part}</p>" for part in text.split("\n"))
            page = f"<html><head><title>{title}</title></head><body><article>{body}</article></body></html>"
            self.reply("text/html; charset=utf-8", page)

        def reply(self, kind: str, text: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = server.server_address[1]
    found = Web(f"http://127.0.0.1:{port}", pages)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("LLMPIPE_SEARCH_URL", found.address)
    monkeypatch.setattr(guard, "allowed", lambda machine, to: (machine, to) == ("127.0.0.1", port))
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
