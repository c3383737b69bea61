"""The tools of a conversation: what a model asks for is checked, and what comes back is made harmless."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmpipe.tools.tool import Result, Tool

MOST_CHARACTERS = 8_000
"""The most of a result that a model is shown: some 2,000 tokens."""


class Toolbox:
    """Tools by name. Calls may come from several threads at once."""

    tools: Mapping[str, Tool]
    notes: Sequence[str]
    """What the user is to be told once, such as a tool of a server that was left out."""

    def schemas(self) -> list[dict[str, Any]]:
        """Return the tools as `tools` of OpenAI's chat API."""
        raise NotImplementedError

    def asked(self, name: str, arguments: str) -> tuple[Tool, dict[str, Any]] | str:
        """Return the tool and its arguments, or what to tell the model that is wrong with them."""
        raise NotImplementedError

    def call(self, tool: Tool, arguments: Mapping[str, Any]) -> Result:
        """Run a tool; whatever it does, this returns, and in time."""
        raise NotImplementedError


@contextmanager
def opened(
    names: Sequence[str],
    *,
    files: Callable[[], Sequence[Path]],
    mcp: Path | None = None,
    most_characters: int = MOST_CHARACTERS,
) -> Iterator[Toolbox]:
    """Give the tools of these names, and those of the MCP servers that a file names; servers end with the block.

    `files` gives the files that the user has named by now, which are all that `read_file` reads. `most_characters` is
    for models whose context has no room for more.

    Raises:
        UsageError: there is no such tool, a package that it needs is missing, or the file of servers is wrong.
        TalkError: a server does not start.
    """
    raise NotImplementedError
    yield
