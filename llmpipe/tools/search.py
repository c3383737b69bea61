"""The tool `web_search`: the engines that ddgs asks, or the SearXNG server that LLMPIPE_SEARCH_URL names.

The variable is the user's: neither a recipe nor a model can set it, so its address may be of this machine.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlencode, urlsplit

from llmpipe.errors import TalkError, UsageError
from llmpipe.tools.fence import one_line
from llmpipe.tools.tool import Tool

VARIABLE = "LLMPIPE_SEARCH_URL"
TIMEOUT_S = 10.0
LONGEST_QUERY = 400
MOST_RESULTS = 8
TITLE_CHARACTERS, URL_CHARACTERS, SNIPPET_CHARACTERS = 120, 500, 300
MOST_BYTES = 2 * 2**20

Found = tuple[str, str, str]  # title, address, snippet


def tool() -> Tool:
    """Return a tool that searches the web.

    Raises:
        UsageError: the variable names no address.
    """
    server = _server()
    return Tool(
        name="web_search",
        description="Searches the web. Gives titles, addresses and a few words of each page; read_page reads one.",
        parameters={
            "type": "object",
            "properties": {
                "query": {"type": "string", "minLength": 1, "maxLength": LONGEST_QUERY, "description": "a few words"},
                "results": {"type": "integer", "minimum": 1, "maximum": MOST_RESULTS},
            },
            "required": ["query"],
            "additionalProperties": False,
        },
        needs="network",
        call=lambda arguments: _searched(server, arguments),
    )


def packages() -> tuple[str, ...]:
    """Return what has to be installed."""
    return () if os.environ.get(VARIABLE) else ("ddgs",)


def _server() -> str | None:
    if not (url := os.environ.get(VARIABLE)):
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{VARIABLE} is no address of a server", hint=f"export {VARIABLE}=http://127.0.0.1:8888")
    return url.rstrip("/")


def _searched(server: str | None, arguments: Mapping[str, Any]) -> str:
    query, most = one_line(arguments["query"], LONGEST_QUERY), arguments.get("results", MOST_RESULTS)
    found = _asked_of(server, query) if server else _asked_of_engines(query)
    pages = [page for page in found if urlsplit(page[1]).scheme in ("http", "https")][:most]
    if not pages:
        return f"nothing is found for {query}"
    return "\n\n".join(
        f"{number}. {one_line(title, TITLE_CHARACTERS)}\n{one_line(url, URL_CHARACTERS)}\n"
        f"{one_line(snippet, SNIPPET_CHARACTERS)}".rstrip()
        for number, (title, url, snippet) in enumerate(pages, 1)
    )


def _asked_of_engines(query: str) -> list[Found]:
    """Ask the public engines that ddgs knows."""
    from ddgs import DDGS  # type: ignore[import-not-found, unused-ignore]
    from ddgs.exceptions import DDGSException  # type: ignore[import-not-found, unused-ignore]

    try:
        rows = DDGS(timeout=int(TIMEOUT_S)).text(query, max_results=MOST_RESULTS)
    except DDGSException as error:
        raise TalkError(f"the search engines give nothing: {one_line(str(error), 200)}") from error
    return _rows(rows, "title", "href", "body")


def _asked_of(server: str, query: str) -> list[Found]:
    """Ask a server with SearXNG's API, docs.searxng.org/dev/search_api.html."""
    parts = urlsplit(server)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        with closing(kind(parts.netloc, timeout=TIMEOUT_S)) as connection:
            connection.request("GET", f"{parts.path}/search?{urlencode({'q': query, 'format': 'json'})}")
            reply = connection.getresponse()
            body = reply.read(MOST_BYTES)
        if reply.status != 200:
            raise TalkError(f"the search server answers {reply.status}", hint="does it allow the format json?")
        return _rows(json.loads(body)["results"], "title", "url", "content")
    except (OSError, http.client.HTTPException) as error:
        raise TalkError(f"the search server cannot be reached: {one_line(str(error), 200)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TalkError("the search server sent what is no answer of SearXNG") from error


def _rows(rows: Iterable[Mapping[str, Any]], *names: str) -> list[Found]:
    title, url, snippet = names
    return [(str(row.get(title) or ""), str(row.get(url) or ""), str(row.get(snippet) or "")) for row in rows]
