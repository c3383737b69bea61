"""Tools of MCP servers: programs that the user names in a file, each talked to over its stdin and stdout.

A server is foreign code that the user chose to run; what it says of its tools is still not believed: descriptions are
one short line, names are fixed up and cannot be those of our own tools, and a tool is as it was when the server
started (a server may not change it once the user has allowed it).
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

from llmpipe.errors import TalkError
from llmpipe.tools.checked import mistake_in_schema
from llmpipe.tools.fence import one_line, plain
from llmpipe.tools.servers_file import Program, configured
from llmpipe.tools.tool import Tool

START_S = 20.0
CALL_S = 25.0
"""Less than a toolbox waits, so that the server is told that nobody does any more."""
MOST_TOOLS = 50
MOST_LISTS = 5
"""How many pages of a list of tools are asked for."""
DESCRIPTION_CHARACTERS = 300
SCHEMA_CHARACTERS = 10_000
NAME_CHARACTERS = 64
"""OpenAI's API takes no longer one."""


@dataclass(frozen=True)
class Found:
    """The tools of all servers, and what the user is to be told of them."""

    tools: tuple[Tool, ...] = ()
    notes: tuple[str, ...] = ()


@contextmanager
def started(path: Path) -> Iterator[Found]:
    """Start the servers that a file names and give their tools; the servers are ended with the block.

    Raises:
        UsageError: the file is not as it has to be.
        TalkError: a server does not start.
    """
    programs = configured(path)
    from anyio.from_thread import start_blocking_portal

    tools: dict[str, Tool] = {}
    notes: list[str] = []
    with start_blocking_portal() as portal, ExitStack() as stack:
        for program in programs:
            log = stack.enter_context(TemporaryFile("w+", encoding="utf-8", errors="replace"))
            served = portal.wrap_async_context_manager(_served(program, log))
            try:
                session, listed = served.__enter__()
            except Exception as error:  # anything, from no such program to what it says instead of MCP
                raise TalkError(f"the server {program.name} does not start: {_reason(error, log)}") from error
            stack.callback(_end, served)

            def call(name: str, arguments: Mapping[str, Any], session: Any = session) -> Any:
                return portal.call(_called, session, name, dict(arguments))

            for entry in listed:
                _add(tools, notes, entry, program, call)
        yield Found(tuple(tools.values()), tuple(notes))


def _end(served: Any) -> None:
    """End a server; the library asks it, waits 2 s, then kills it and its children."""
    with suppress(Exception):  # what a server does on its way out is nobody's concern
        served.__exit__(None, None, None)


@asynccontextmanager
async def _served(program: Program, log: TextIO) -> AsyncIterator[tuple[Any, list[Any]]]:
    """Start a server and ask for its tools."""
    import anyio
    from mcp import ClientSession, StdioServerParameters, stdio_client
    from mcp.types import PaginatedRequestParams

    # Its environment is HOME, LOGNAME, PATH, SHELL, TERM and USER, and what the file adds.
    command, *arguments = program.command
    wanted = StdioServerParameters(
        command=command, args=arguments, env=dict(program.environment), encoding_error_handler="replace"
    )
    async with stdio_client(wanted, errlog=log) as (incoming, outgoing), ClientSession(incoming, outgoing) as session:
        with anyio.fail_after(START_S):
            await session.initialize()
            page = await session.list_tools()
            listed = [*page.tools]
            for _ in range(MOST_LISTS - 1):
                if page.next_cursor is None:
                    break
                page = await session.list_tools(params=PaginatedRequestParams(cursor=page.next_cursor))
                listed += page.tools
        yield session, listed


async def _called(session: Any, name: str, arguments: dict[str, Any]) -> Any:
    """Call a tool; not by `call_tool`, which checks the answer by the server's own regular expressions (mcp 2.3)."""
    from mcp import types

    request = types.CallToolRequest(params=types.CallToolRequestParams(name=name, arguments=arguments))
    return await session.send_request(request, types.CallToolResult, request_read_timeout_seconds=CALL_S)


def _add(
    tools: dict[str, Tool], notes: list[str], entry: Any, program: Program, call: Callable[[str, Any], Any]
) -> None:
    """Add a tool of a server, or note why it is left out."""
    name = f"{program.name}__{re.sub(r'[^A-Za-z0-9_-]+', '_', entry.name)}"[:NAME_CHARACTERS]
    own = sum(tool.startswith(f"{program.name}__") for tool in tools)
    wrong = mistake_in_schema(entry.input_schema)
    if name in tools:
        wrong = "another has its name"
    elif own >= MOST_TOOLS:
        wrong = f"a server has at most {MOST_TOOLS}"
    elif len(json.dumps(entry.input_schema)) > SCHEMA_CHARACTERS:
        wrong = f"its parameters take more than {SCHEMA_CHARACTERS:,} characters"
    if wrong:
        notes.append(f"the tool {name} is left out: {wrong}")
        return
    tools[name] = Tool(
        name=name,
        description=one_line(entry.description or "", DESCRIPTION_CHARACTERS),
        parameters=_shortened(entry.input_schema),
        needs="program",
        call=lambda arguments: _answer(program, lambda: call(entry.name, arguments)),
    )


def _shortened(schema: Any) -> Any:
    """Return a schema whose texts for people are one short line each, without what does not show."""
    if isinstance(schema, list):
        return [_shortened(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        plain(key): one_line(value, DESCRIPTION_CHARACTERS)
        if key in ("description", "title", "$comment") and isinstance(value, str)
        else _shortened(value)
        for key, value in schema.items()
    }


def _answer(program: Program, call: Callable[[], Any]) -> str:
    """Return what a call came to, as text.

    Raises:
        TalkError: the tool says that it failed, or the server is gone, slow or breaks the protocol.
    """
    try:
        result = call()
    except Exception as error:
        raise TalkError(f"the server {program.name} gave no answer: {_first(error)}") from error
    parts = [_block(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    text = "\n".join(parts)
    if result.is_error:
        raise TalkError(text or "it failed, and does not say why")
    return text


def _block(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    inner = getattr(getattr(block, "resource", None), "text", None)  # an embedded resource may be a text
    return inner if isinstance(inner, str) else f"[{block.type}: it is not shown]"


def _reason(error: BaseException, log: TextIO) -> str:
    """Return what a server said last, else what went wrong with it."""
    log.seek(0)
    said = [line for line in log.read().splitlines() if line.strip()]
    return one_line(said[-1], 200) if said else _first(error)


def _first(error: BaseException) -> str:
    """Return the first error of a group of them, in a line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"it is silent for {START_S:g} s"
    return one_line(str(error), 200) or type(error).__name__
