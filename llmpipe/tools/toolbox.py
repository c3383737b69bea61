"""The tools of a conversation: what a model asks for is checked, and what comes back is made harmless."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from llmpipe.errors import LlmpipeError, TalkError, UsageError, did_you_mean
from llmpipe.tools import calculator, checked, clock, fence, files, pages, search, servers
from llmpipe.tools.tool import Result, Tool

MOST_CHARACTERS = 8_000
"""The most of a result that a model is shown: some 2,000 tokens."""
TIMEOUT_S = 30.0
"""How long a call may take, whatever the tool."""
LOGGING = ("mcp", "pypdf", "trafilatura")
"""They log what they dislike in a page, a file or an answer, and Python writes a log that nobody takes to stderr."""
PACKAGES = {"read_page": ("trafilatura",)}
"""What a tool cannot do without."""
_NOWHERE = logging.NullHandler()


class Toolbox:
    """Tools by name. Calls may come from several threads at once.

    `notes` is what the user is to be told once, such as a server's tool that was left out.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        *,
        notes: Sequence[str] = (),
        most_characters: int = MOST_CHARACTERS,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.tools: Mapping[str, Tool] = {tool.name: tool for tool in tools}
        self.notes, self.most_characters, self.timeout_s = tuple(notes), most_characters, timeout_s

    def schemas(self) -> list[dict[str, Any]]:
        """Return the tools as `tools` of OpenAI's chat API."""
        return [tool.schema() for tool in self.tools.values()]

    def asked(self, name: str, arguments: str) -> tuple[Tool, dict[str, Any]] | str:
        """Return the tool and its arguments, or what to tell the model that is wrong with them."""
        tool = self.tools.get(name)
        if tool is None:
            there = ", ".join(self.tools) or "none"
            near = did_you_mean(name[:100], list(self.tools))
            return f"there is no tool {fence.one_line(name, 64)}{near}; there are: {there}"
        try:
            return tool, checked.parsed(tool, arguments)
        except TalkError as error:
            return f"{tool.name}: {fence.plain(_said(error))}"

    def call(self, tool: Tool, arguments: Mapping[str, Any]) -> Result:
        """Run a tool; whatever it does, this returns, and in time.

        A call that takes too long is left to end by itself: Python cannot stop a thread.
        """
        answers: SimpleQueue[tuple[str, bool]] = SimpleQueue()
        Thread(target=_run, args=(tool, arguments, answers), name=f"tool {tool.name}", daemon=True).start()
        try:
            text, failed = answers.get(timeout=self.timeout_s)
        except Empty:
            text, failed = f"there was no answer within {self.timeout_s:g} s", True
        return Result(fence.untrusted(text, source=tool.name, most=self.most_characters), failed)


def _run(tool: Tool, arguments: Mapping[str, Any], answers: SimpleQueue[tuple[str, bool]]) -> None:
    try:
        answers.put((str(tool.call(arguments)), False))
    except LlmpipeError as error:
        answers.put((_said(error), True))
    except BaseException as error:  # whatever it is, it is the tool's failure and not the conversation's
        answers.put((f"it failed: {type(error).__name__}: {error}", True))


def _said(error: LlmpipeError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)


def _made(given: Callable[[], Sequence[Path]]) -> dict[str, Callable[[], Tool]]:
    return {
        "calculator": calculator.tool,
        "now": clock.tool,
        "read_file": lambda: files.tool(given),
        "read_page": pages.tool,
        "web_search": search.tool,
    }


NAMES = tuple(_made(lambda: ()))


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
    for library in LOGGING:
        logging.getLogger(library).addHandler(_NOWHERE)
    makers = _made(files)
    for name in names:
        if name not in makers:
            near = did_you_mean(name, NAMES)
            raise UsageError(f"there is no tool {name}{near}", hint=f"there are {', '.join(NAMES)}")
        needed = search.packages() if name == "web_search" else PACKAGES.get(name, ())
        refuse_without(f"the tool {name}", needed)
    if mcp is not None:
        refuse_without(f"the file {mcp}", ("mcp",))
    own = [makers[name]() for name in dict.fromkeys(names)]
    with servers.started(mcp) if mcp is not None else nullcontext(servers.Found()) as found:
        yield Toolbox([*own, *found.tools], notes=found.notes, most_characters=most_characters)


def refuse_without(what: str, packages: Sequence[str]) -> None:
    """Raise UsageError where a package is not installed, with what to type."""
    for package in packages:
        if find_spec(package) is None:
            raise UsageError(
                f"{what} needs the package {package}, which is not installed", hint="pip install 'llmpipe[tools]'"
            )
