"""The loop in which a model uses tools: it calls, the user consents, the result goes back, until it answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from llmpipe.talk.engine import Message, Piece
from llmpipe.talk.kit import Kit, listed, shown
from llmpipe.talk.parts import Note, Parts, Step, Steps

MOST_ROUNDS = 6
"""How often a model may call before it has to answer."""
MOST_CALLS = 8
"""How many calls of one round are made."""
NOTE_CHARS = 160

Asking = Callable[[Sequence[Message]], Parts]
"""Asks the model, with these tools, to go on after all that was kept until now."""


@dataclass
class _State:
    """What happened on the way to an answer."""

    refused: set[str] = field(default_factory=set)
    made: set[tuple[str, str]] = field(default_factory=set)
    is_repaired: bool = False
    is_over: bool = False
    """Whether the model has to answer now."""


def with_tools(ask: Asking, kit: Kit) -> Steps:
    """Answer with tools: each round of calls is a `Step` with its results, each call a `Note`.

    A call that is wrong gets one turn to be mended; after another one the model has to answer without. So it does after
    `MOST_ROUNDS`, and where it makes the same call again.
    """
    state, tools = _State(), kit.offered()
    for rounds_left in range(MOST_ROUNDS, -1, -1):
        said, calls = yield from _said(ask(tools))
        if not calls:
            return
        if state.is_over or not rounds_left:
            yield Note("it wants to call more tools, and is not let: ask again to go on")
            yield Piece("", "stop")
            return
        if said:
            yield Piece("\n\n")  # what it says next stands apart
        state.is_over = rounds_left == 1
        results, is_wrong = [], False
        for call in calls:
            told, was_wrong = yield from _result(kit, call, state)
            results.append(
                {"role": "tool", "tool_call_id": call["id"], "name": _name(call["function"]["name"]), "content": told}
            )
            is_wrong |= was_wrong
        state.is_repaired |= is_wrong
        if state.is_over:
            results[-1]["content"] += "\nNo more tools can be called now: answer with what is known."
        called: Message = {"role": "assistant", "content": said, "tool_calls": [_kept(call) for call in calls]}
        yield Step((called, *results))


def _said(pieces: Parts) -> Generator[Piece | Note, None, tuple[str, list[dict[str, Any]]]]:
    """Pass on what a model says; return it with its calls. An end that is none is not passed on."""
    said = ""
    calls: list[dict[str, Any]] = []
    with closing(pieces):
        for piece in pieces:
            if isinstance(piece, Note):
                yield piece
                continue
            said += piece.text
            calls += piece.tool_calls
            yield replace(piece, finish=None, tool_calls=()) if piece.finish == "tool_calls" else piece
    return said, calls[:MOST_CALLS]


def _result(kit: Kit, call: dict[str, Any], state: _State) -> Generator[Note, None, tuple[str, bool]]:
    """Make a call, where it can be made and the user lets it.

    Returns what the model is told of it, and whether the call was wrong.
    """
    found = kit.asked(call["function"]["name"], call["function"]["arguments"])
    if isinstance(found, str):
        if state.is_repaired:
            state.is_over = True
            yield Note(f"a call was wrong again, and is refused: {shown(found, chars=NOTE_CHARS)}")
            return f"Refused: {found}", True
        yield Note(f"a call was wrong, and the model is told: {shown(found, chars=NOTE_CHARS)}")
        return f"Wrong call: {found}", True
    tool, given = found
    told = f"{tool.name} {listed(given, chars=NOTE_CHARS)}"
    made = (tool.name, json.dumps(given, sort_keys=True))
    if made in state.made:
        state.is_over = True
        yield Note(f"{told}: the same call again is not made")
        return "This very call was made before: its result is above.", False
    state.made.add(made)
    if tool.name in state.refused or not kit.permits(tool, given):
        state.refused.add(tool.name)
        yield Note(f"{told}: not allowed")
        return "The user did not allow this call. Do without it.", False
    yield Note(told)
    outcome = kit.toolbox.call(tool, given)
    if outcome.failed:
        yield Note(f"{tool.name} failed: {shown(outcome.text, chars=NOTE_CHARS)}")
    return outcome.text, False


def _kept(call: dict[str, Any]) -> dict[str, Any]:
    """Return a call as it is sent again: servers and templates refuse one whose arguments are no JSON object."""
    try:
        is_object = isinstance(json.loads(call["function"]["arguments"]), dict)
    except ValueError:
        is_object = False
    arguments = call["function"]["arguments"] if is_object else "{}"
    return {**call, "function": {"name": _name(call["function"]["name"]), "arguments": arguments}}


def _name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "unknown"
