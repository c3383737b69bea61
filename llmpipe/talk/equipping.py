"""From what the command line says of tools to those of a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmpipe.errors import UsageError, did_you_mean
from llmpipe.talk.engine import Engine
from llmpipe.talk.kit import Asks, Kit, named, nobody
from llmpipe.tools import toolbox

READS = "read_file"
OF_A_SERVER = "__"
"""Stands in the name of an MCP server's tool."""


@dataclass(frozen=True)
class Tools:
    """What the command line says of tools: those that are on, those that nobody need be asked for, and files.

    `mcp` names a file with MCP servers, whose tools are on.
    """

    on: Sequence[str] = ()
    allowed: Sequence[str] = ()
    files: Sequence[Path] = ()
    mcp: Path | None = None

    def __bool__(self) -> bool:
        """Whether anything is said."""
        return bool(self.on or self.allowed or self.files or self.mcp)


@contextmanager
def equipped(tools: Tools, engines: Sequence[Engine], *, asks: Asks = nobody, all_there: bool = False) -> Iterator[Kit]:
    """Give the tools of a conversation; MCP servers end with the block. `all_there` has the others at hand, too.

    Raises:
        UsageError: there is no such tool, file or package, or no model that can call.
        TalkError: an MCP server does not start.
    """
    if tools and not any(engine.chats for engine in engines):
        raise UsageError(f"{engines[0].name} knows no turns, so it calls no tools", hint="take a model that can chat")
    files = [named(path) for path in tools.files]
    on = [*tools.on, *tools.allowed, *([READS] if files else ())]
    own = [name for name in on if OF_A_SERVER not in name]
    if all_there:
        own += [name for name in toolbox.NAMES if _is_there(name)]
    most = min(toolbox.MOST_CHARACTERS, *(engine.context for engine in engines))  # a quarter of a context
    with toolbox.opened(own, files=lambda: files, mcp=tools.mcp, most_characters=most) as box:
        for name in on:
            if name not in box.tools:
                near = did_you_mean(name, list(box.tools))
                raise UsageError(f"there is no tool {name}{near}", hint=f"there is {', '.join(box.tools)}")
        on += [name for name in box.tools if OF_A_SERVER in name]
        yield Kit(box, on=on, allowed=tools.allowed, asks=asks, files=files)


def refuse_missing(name: str) -> None:
    """Raise UsageError where a tool is not known, or lacks a package, with what to type."""
    with toolbox.opened([name], files=list):
        pass


def _is_there(name: str) -> bool:
    try:
        refuse_missing(name)
    except UsageError:
        return False
    return True


def names_of(given: Sequence[str] | None) -> list[str]:
    """Read the names that an option gives, several of them with commas between."""
    return [name.strip() for one in given or () for name in one.split(",") if name.strip()]
