"""From files to training examples: `rows` reads them, `formats` turns rows into conversations or plain text.

Both share what is here: the row, the collector that lets one pass show every problem, the checks of a value,
and those of a turn.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypedDict

from llmpipe.errors import DataError, Problem, did_you_mean

MAX_DEPTH = 100  # far above real data, far below where Python's own JSON code gives up
TOO_DEEP = f"the values are nested deeper than {MAX_DEPTH} levels"
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "function_call", "tool_call"),
    "tool": ("tool", "observation", "function", "function_response", "tool_response"),
}
ROLE = {name: role for role, names in ROLES.items() for name in names}
FOLLOWS = {  # which roles may come after a role; None is the start of the conversation
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
TURN_KEYS = ("role", "from"), ("content", "value"), ("loss_weight", "weight", "train")
UNUSABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file: `where` is `file:line` or `file: row number`, `value` its cells by column."""

    where: str
    value: dict[str, object]


@dataclass(frozen=True)
class BadRow(Problem):
    """A row that a reader cannot make out: `raw` is how it stands in the file, where that is known.

    `again`: another problem of the row before, so that a row counts once.
    """

    raw: object = None
    again: bool = False


@dataclass(frozen=True)
class PassedOver:
    """A file that is no bad row and yet not to be learned from; `why` in a word or two, to be counted."""

    why: str


@dataclass(frozen=True)
class More(Problem):
    """The line after the last problem listed: how many were left out."""

    count: int = 0


class Problems:
    """The problems of one pass: the first `limit` in full, the rest counted, so that memory stays flat."""

    def __init__(self, limit: int = 20) -> None:
        self.limit = limit
        self.listed: list[Problem] = []
        self.more = 0
        self.passed_over: Counter[str] = Counter()

    def add(self, *problems: Problem) -> None:
        """Take note of problems."""
        for problem in problems:
            if isinstance(problem, More):
                self.more += problem.count
            elif len(self.listed) < self.limit:
                self.listed.append(Problem(problem.message, problem.where))  # without the row, which may be long
            else:
                self.more += 1

    def reject(self, row: Row, wrong: Iterable[str]) -> None:
        """Take note of what is wrong with a row that was read, and that no format makes sense of."""
        self.add(*(Problem(what, row.where) for what in wrong))

    def unfit(self, row: Row, error: DataError) -> None:
        """Deal with a first row by which no format can be told: nothing after it could be read either."""
        del row
        raise error

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass rows on; what reading them raises at their end is kept, to be raised with the rest."""
        try:
            yield from rows
        except DataError as error:
            self.add(*error.problems)

    def raise_any(self) -> None:
        """Raise one DataError with all that was noted, if anything was."""
        tail = [More(f"... and {self.more} more", count=self.more)] if self.more else []
        if self.listed or tail:
            raise DataError([*self.listed, *tail])


@dataclass(slots=True)
class Cells:
    """A row under our column names, the user's names for them, and what was found wrong."""

    value: dict[str, object]
    names: Mapping[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def name(self, column: str) -> str:
        """Return the user's name of one of our columns, for messages."""
        return self.names.get(column, column)

    def text(self, column: str, *, needed: bool = True) -> str:
        """Return a cell's text; anything but text is noted, and if the text is needed, an empty one too."""
        value = self.value.get(column)
        if isinstance(value, str):
            if needed and not value.strip():
                self.wrong.append(f"{self.name(column)} is empty")
            return value
        if needed or value is not None:
            self.wrong.append(f"{self.name(column)} is {kind(value)}, not text")
        return ""


def kind(value: object) -> str:
    """Return what a value is, in the words of JSON."""
    if value is None:
        return "null"
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else f"a {type(value).__name__}")


def repeats(names: Sequence[str]) -> list[str]:
    """Return the names that are given more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


class _Repeated(dict[str, object]):
    """A JSON object in which a key appears twice; `flaw` finds it where the row is known."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else _Repeated.fromkeys(repeats([key for key, _ in pairs]))


decode = json.JSONDecoder(object_pairs_hook=_object).decode
"""Parse JSON such that `flaw` can tell of keys given twice."""


def flaw(value: object, depth: int = 0) -> str | None:
    """Return what makes a value unusable for training, if anything does."""
    if isinstance(value, str):
        found = UNUSABLE.search(value)
        if found is None:
            return None
        what = "a NUL character" if found[0] == "\0" else f"half of a character (\\u{ord(found[0]):04x})"
        return f"there is {what} in the text; remove it"
    if depth > MAX_DEPTH:
        return TOO_DEEP
    if isinstance(value, _Repeated):
        return f"the key {next(iter(value))!r} appears twice in one object; keep one"
    parts: Iterable[object] = value if isinstance(value, list) else ()
    if isinstance(value, dict):
        parts = chain(value, value.values())
    return next((wrong for part in parts if (wrong := flaw(part, depth + 1))), None)


class Message(TypedDict):
    """One turn; `train` says whether loss may be taken on it."""

    role: str
    content: str
    train: bool


def said(role: str, content: str) -> Message:
    """Return a turn; loss is taken on what the assistant says."""
    return Message(role=role, content=content, train=role == "assistant")


def content_text(content: object, at: str, wrong: list[str]) -> str:
    """Return a turn's text, joined where it comes in parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        wrong.append(f"{at} is {kind(content)}, not text")
        return ""
    parts = [part if isinstance(part, dict) and part.get("type") == "text" else {} for part in content]
    found = [part.get("text", part.get("value")) for part in parts]
    wrong.extend(f"{at} part {n} is not a text part" for n, text in enumerate(found, 1) if not isinstance(text, str))
    return "".join(text for text in found if isinstance(text, str))


def turn_message(turn: object, at: str, wrong: list[str]) -> Message:
    """Return a turn of a list in our terms; what is wrong with it goes to `wrong`, with its place `at`."""
    if not isinstance(turn, dict):
        wrong.append(f"{at} is {kind(turn)}, not an object with role and content")
        return said("", "")
    # The two vocabularies are often mixed, so each turn may use either.
    name, content, weight = (next((turn[key] for key in keys if turn.get(key) is not None), None) for keys in TURN_KEYS)
    role = ROLE.get(name.lower(), "") if isinstance(name, str) else ""
    message = said(role, content_text(content, at, wrong))
    if name is None:
        wrong.append(f"{at} has no role")
    elif not role:
        near = did_you_mean(str(name).lower(), list(ROLE)) or f"; known are {', '.join(ROLE)}"
        wrong.append(f"{at} has the unknown role {name!r}{near}")
    if turn.get("tool_calls"):
        wrong.append(f"{at} has tool_calls, which are not read; write the call into its content")
    # A tool may answer with nothing, and an empty system prompt is none; others must say something.
    if role in ("user", "assistant") and content is not None and not message["content"].strip():
        wrong.append(f"{at} ({name}) is empty")
    if not isinstance(weight, (int, float, type(None))):
        wrong.append(f"{at} has {kind(weight)} for its loss weight, not a number")
    elif weight is not None:
        message["train"] &= weight > 0
    return message


def user_words(messages: Iterable[Message]) -> str:
    """Return all that the user says, a turn to a line: what decides on which side of a split a prompt falls."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")


def misplaced(messages: Iterable[Message], *, before: str | None = None) -> Iterator[str]:
    """Say which turns may not stand where they do; `before` is the role of the turn ahead of them, if any."""
    for number, message in enumerate(messages, 1):
        if message["role"] not in FOLLOWS[before]:
            what = f"after {before}" if before else "at the start"
            yield f"turn {number} is {message['role']}, but {what} comes {' or '.join(FOLLOWS[before])}"
        before = message["role"]


def disorder(messages: list[Message]) -> Iterator[str]:
    """Say what keeps messages from being a conversation that ends in an answer."""
    yield from misplaced(messages)
    if all(message["role"] != "assistant" for message in messages):
        yield "there is no assistant turn to learn from"
    elif (last := messages[-1]["role"]) != "assistant":
        yield f"the last turn ({last}) has no answer; remove it or add one"
    elif not any(message["train"] for message in messages):
        yield "all assistant turns have loss weight 0, so there is nothing to learn from"
