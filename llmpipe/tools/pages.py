"""The tool `read_page`: the main text of a page of the public web, a part at a time."""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping
from functools import lru_cache
from io import BufferedReader, BytesIO
from typing import Any

from llmpipe.data import Row
from llmpipe.data.readers import books, web
from llmpipe.errors import LlmpipeError, TalkError
from llmpipe.tools.fence import one_line
from llmpipe.tools.fetch import Page, fetched
from llmpipe.tools.tool import Tool

PART_CHARACTERS = 5_000
KEPT_PAGES = 8
"""How many pages are kept for their next parts."""


def tool() -> Tool:
    """Return a tool that reads pages, and keeps the last ones as long as it is there itself."""
    read = lru_cache(maxsize=KEPT_PAGES)(main_text)

    def call(arguments: Mapping[str, Any]) -> str:
        url = arguments["url"].strip().partition("#")[0]
        return _part(*read(url), number=arguments.get("part", 1))

    return Tool(
        name="read_page",
        description=f"Reads the main text of a web page, in parts of {PART_CHARACTERS:,} characters.",
        parameters={
            "type": "object",
            "properties": {
                "url": {"type": "string", "description": "http(s)://HOST/PATH"},
                "part": {"type": "integer", "minimum": 1, "description": "1 if left out"},
            },
            "required": ["url"],
            "additionalProperties": False,
        },
        needs="network",
        call=call,
    )


def main_text(url: str) -> tuple[str, str]:
    """Return what a page is called and its main text.

    Raises:
        TalkError: it cannot be fetched, or has no text.
    """
    page = fetched(url)
    heading = page.url if page.url == url else f"{page.url} (moved from {url})"
    if page.kind not in ("text/html", "application/xhtml+xml"):
        return heading, _decoded(page)
    # The mark at the beginning is what browsers believe before all that the page says of itself, as they believe a
    # server that names an encoding.
    body = codecs.BOM_UTF8 + _decoded(page).encode() if page.encoding else page.body
    try:
        row = next(iter(web.page(BufferedReader(BytesIO(body)), "page")))
    except LlmpipeError as error:
        raise TalkError(error.problems, hint="pip install 'llmpipe[tools]'") from error
    if isinstance(row, Row):
        title = one_line(str(row.value.get("title", "")), 200)
        return "\n".join(filter(None, (title, heading))), str(row.value["text"])
    if text := books.plain(_decoded(page)):  # a page that is nearly all links, or a few words
        return heading, text
    raise TalkError("there is no text in this page")


def _decoded(page: Page) -> str:
    try:
        return page.body.decode(page.encoding or "utf-8", errors="replace")
    except LookupError:
        return page.body.decode("utf-8", errors="replace")


def _part(heading: str, text: str, *, number: int) -> str:
    parts = max(1, math.ceil(len(text) / PART_CHARACTERS))
    if number > parts:
        raise TalkError(f"the page has {parts} part{'s' * (parts > 1)}, and no part {number}")
    shown = text[(number - 1) * PART_CHARACTERS : number * PART_CHARACTERS]
    return f"{heading}\npart {number} of {parts}\n\n{shown}" if parts > 1 else f"{heading}\n\n{shown}"
