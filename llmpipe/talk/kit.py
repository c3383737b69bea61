"""The tools of a conversation: which of them the model may use, and what the user has allowed.

Nothing that a model or a tool says ends up here: tools are turned on and allowed by the command line, by `/tools`, and
by what the user answers to a question.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmpipe.errors import Problem, TalkError, did_you_mean
from llmpipe.talk.engine import Message
from llmpipe.tools.tool import Tool
from llmpipe.tools.toolbox import Toolbox

Answer = Literal["once", "conversation", "no"]
SHOWN_CHARS = 400
"""What is shown of a call's arguments; how much there is, is said."""
WHY = {
    "network": "it sends this to other computers and reads what they answer",
    "program": "another program does it, with all that you may do on this machine",
}
FREE = ("nothing", "files")
"""Needs that no call is asked for: none, and files, which the user named."""


@dataclass(frozen=True)
class Wish:
    """What a user is asked to allow: a call, and why it is asked. Free of characters that could disguise it."""

    tool: str
    arguments: str
    why: str


Asks = Callable[[Wish], Answer]


def nobody(_: Wish) -> Answer:
    """Answer for a user who cannot be asked."""
    return "no"


class Kit:
    """The tools of one conversation.

    `on` are the names of those that the model is offered, `allowed` of those whose calls are not asked for. `files` are
    the ones that the user has named by now, the same list that the toolbox reads.
    """

    def __init__(
        self,
        toolbox: Toolbox,
        *,
        on: Iterable[str] = (),
        allowed: Iterable[str] = (),
        asks: Asks = nobody,
        files: list[Path] | None = None,
    ) -> None:
        self.toolbox, self.asks = toolbox, asks
        self.files = [] if files is None else files
        self._untold = list(self.files)
        self._given = ({*on, *allowed}, {*allowed})
        self.on, self.allowed = ({*names} for names in self._given)

    def afresh(self) -> Kit:
        """Return the kit of another conversation: what was allowed in this one is not, in that."""
        on, allowed = self._given
        return Kit(self.toolbox, on=on, allowed=allowed, asks=self.asks, files=self.files)

    def name_file(self, path: Path) -> None:
        """Let the model read a file.

        Raises:
            TalkError: it is not there.
        """
        path = named(path)
        self.files.append(path)
        self._untold.append(path)
        self.turn_on("read_file")

    def told_of_files(self) -> str:
        """Return what the model is told of files that were named since it was last told."""
        names, self._untold = [shown(path.name) for path in self._untold], []
        return f"Files that read_file reads: {', '.join(names)}\n\n" if names else ""

    def offered(self) -> list[Message]:
        """Return what the model is told of the tools that it may call."""
        return [tool.schema() for tool in self._usable()]

    def asked(self, name: str, arguments: str) -> tuple[Tool, dict[str, Any]] | str:
        """Return the tool that a call means and its arguments, or what to tell the model that is wrong with it."""
        usable = [tool.name for tool in self._usable()]
        if not name:
            return f"this is no call that can be read: {shown(arguments)}"
        if name not in usable:
            return f"there is no tool {shown(name)}{did_you_mean(name, usable)}; there is {', '.join(usable)}"
        return self.toolbox.asked(name, arguments)

    def permits(self, tool: Tool, arguments: Mapping[str, Any]) -> bool:
        """Return whether a call may be made; where that is not known, the user is asked."""
        if tool.needs in FREE:
            return True
        return self.permits_all((tool.name,), Wish(shown(tool.name), listed(arguments), WHY[tool.needs]))

    def permits_all(self, names: Collection[str], wish: Wish) -> bool:
        """Return whether the user has allowed these tools, or grants a wish for them."""
        if self.allowed.issuperset(names):
            return True
        answer = self.asks(wish)
        if answer == "conversation":
            self.allowed.update(names)
        return answer in ("once", "conversation")

    def state(self, tool: Tool) -> str:
        """Return how a tool stands, in words."""
        if tool.name not in self.on:
            return "off"
        if tool.needs == "files":
            named = ", ".join(shown(path.name) for path in self.files)
            return f"on: {named}" if named else "on, but you named no file"
        return "on" if tool.needs in FREE else "allowed" if tool.name in self.allowed else "each call is asked for"

    def turn_on(self, name: str, *, is_allowed: bool = False) -> None:
        """Let the model call a tool, and not be asked about it.

        Raises:
            TalkError: there is no such tool.
        """
        self._check(name)
        self.on.add(name)
        if is_allowed:
            self.allowed.add(name)

    def turn_off(self, name: str) -> None:
        """Keep the model from a tool; what was allowed of it no longer is.

        Raises:
            TalkError: there is no such tool.
        """
        self._check(name)
        self.on.discard(name)
        self.allowed.discard(name)

    def _usable(self) -> list[Tool]:
        tools = self.toolbox.tools.values()
        return [tool for tool in tools if tool.name in self.on and (tool.needs != "files" or self.files)]

    def _check(self, name: str) -> None:
        known = list(self.toolbox.tools)
        if name not in known:
            raise TalkError(f"there is no tool {name}{did_you_mean(name, known)}", hint=f"there is {', '.join(known)}")


def listed(arguments: Mapping[str, Any], *, chars: int = SHOWN_CHARS) -> str:
    """Write a call's arguments so that they can be read, and hide nothing."""
    return shown(json.dumps(arguments, ensure_ascii=False), chars=chars)


def shown(text: str, *, chars: int = SHOWN_CHARS) -> str:
    """Return a text as a line: what is cut is counted; what is invisible, or turns text around, is written out."""
    line = "".join(char if _is_plain(char) else f"\\u{ord(char):04x}" for char in text)
    return line if len(line) <= chars else f"{line[:chars]}… ({len(line):,} characters)"


def _is_plain(char: str) -> bool:
    return char == " " or unicodedata.category(char)[0] not in "CZ"


def named(path: Path) -> Path:
    """Return where a file is that the user names; a link is followed now, and not when a model reads it.

    Raises:
        TalkError: there is no file.
    """
    path = path.expanduser()
    if not path.is_file():
        raise TalkError(Problem("is no file", where=str(path)))
    return path.resolve()
