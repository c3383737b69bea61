"""A web on this machine that can be searched: SearXNG's API, and the pages that it finds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import pytest

from llmpipe.tools import guard
from tests.unit.stub_web import Answer, page, running


class Web:
    """`pages` are titles and texts by path; `asked` has the queries, `read` the paths that were fetched."""

    def __init__(self, address: str, pages: Mapping[str, tuple[str, str]]) -> None:
        self.address, self.pages = address, dict(pages)
        self.asked: list[str] = []
        self.read: list[str] = []

    def url(self, path: str) -> str:
        return f"{self.address}{path}"

    def get(self, path: str) -> Answer | None:
        """Return how a path is answered; None where there is no page."""
        if path == "/search":
            return self.search
        self.read.append(path)
        title, text = self.pages.get(path, ("", ""))
        body = "".join(f"<p>{part}</p>" for part in text.split("\n"))
        html = f"<html><head><title>{title}</title></head><body><article>{body}</article></body></html>"
        return page(html) if text else None

    def search(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(parse_qs(urlsplit(request.path).query)["q"][0])
        rows = [
            {"title": title, "url": self.url(path), "content": text[:200]} for path, (title, text) in self.pages.items()
        ]
        page(json.dumps({"results": rows}), "application/json")(request)


@contextmanager
def web(monkeypatch: pytest.MonkeyPatch, pages: Mapping[str, tuple[str, str]]) -> Iterator[Web]:
    """Serve pages, and let the tools reach them, and nothing else."""
    with running() as server:
        found = Web(server.url, pages)
        server.pages = found
        monkeypatch.setenv("LLMPIPE_SEARCH_URL", found.address)
        monkeypatch.setattr(guard, "allowed", lambda machine, to: (machine, to) == ("127.0.0.1", server.port))
        yield found
