"""One turn of the page: a question, and the answers of one model or of several side by side.

The models answer at once, each in a thread of its own, and their pieces go out as one stream.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpipe.errors import LlmpipeError, TalkError
from llmpipe.talk.attachments import Attachment, with_files
from llmpipe.talk.engine import Engine, Message, Piece, Sampling
from llmpipe.talk.memory import Memory
from llmpipe.talk.sent import Asked, of_memory, without_oldest
from llmpipe.talk.serve.answers import Answers

Event = dict[str, Any]
log = logging.getLogger("uvicorn.error")
STOPPED_WITHIN_S = 5.0


@dataclass
class Turn:
    """A question and its answers so far, by model; `conversation` and `id` of the question are None where unkept."""

    engines: Mapping[str, Engine]
    memory: Memory | None
    conversation: int | None
    question: Message
    history: Sequence[Message] = ()
    how: Sampling = field(default_factory=Sampling)
    id: int | None = None
    is_first: bool = False
    is_kept: bool = False
    said: dict[str, str] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)


_under_way: dict[tuple[Path, int], Turn] = {}


def told(error: Exception) -> str:
    """Return an error as one line for the page."""
    if not isinstance(error, LlmpipeError):
        return "the server failed; its log says why"
    return "; ".join(filter(None, [str(error), error.hint]))


def begun(
    engines: Mapping[str, Engine],
    memory: Memory | None,
    conversation: int | None,
    text: str,
    *,
    files: Sequence[Attachment] = (),
    history: Sequence[Message] = (),
) -> Turn:
    """Keep a question, in a new conversation if it is in none yet, and return the turn.

    Raises:
        TalkError: there is no such conversation, or its last answer is not over.
    """
    question = {"role": "user", "content": with_files(text, files)}
    turn = Turn(engines, memory, conversation, question, history)
    if memory is None:
        turn.conversation = None
        return turn
    key = (memory.path, conversation or 0)
    before = _under_way.get(key)
    if before and not before.done.wait(STOPPED_WITHIN_S):  # one that was stopped is kept in a moment
        raise TalkError("this conversation is being answered", hint="wait for the answer, or stop it")
    turn.is_first = conversation is None
    kept = memory.begin(next(iter(engines))) if conversation is None else conversation
    names = [file.name for file in files]
    turn.conversation = kept
    turn.id = memory.add(kept, question, page={"text": text, "files": names} if files else None)
    if turn.is_first and files:  # else the title would be the file's first words
        memory.rename(kept, text.strip() or ", ".join(names))
    _under_way[memory.path, kept] = turn
    return turn


async def stream(turn: Turn, answers: Answers) -> AsyncIterator[str]:
    """Answer, as JSON lines; closing it stops all models, and what they said is kept."""
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_answer(turn, name, answers, events)) for name in turn.engines]
    ended = asyncio.gather(*tasks, return_exceptions=True)
    ended.add_done_callback(lambda _: events.put_nowait(None))
    try:
        yield _line({"conversation": turn.conversation, "content": turn.question["content"]})
        while (event := await events.get()) is not None:
            yield _line(event)
        yield _line(await asyncio.to_thread(_keep, turn))
    finally:
        for task in tasks:
            task.cancel()
        _keep(turn)


def _line(event: Event) -> str:
    return json.dumps(event) + "\n"


async def _answer(turn: Turn, name: str, answers: Answers, events: asyncio.Queue[Event | None]) -> None:
    """Let one model answer until it ends, fails or is stopped."""
    begun_s = time.monotonic()
    try:
        async with aclosing(answers.of(lambda: _pieces(turn, name))) as pieces:
            async for piece in pieces:
                if piece.text:
                    turn.said[name] = turn.said.get(name, "") + piece.text
                    events.put_nowait({"model": name, "text": piece.text})
                if piece.note:
                    events.put_nowait({"model": name, "note": piece.note})
                if piece.finish:
                    tokens = piece.usage.answer_tokens if piece.usage else None
                    took_s = round(time.monotonic() - begun_s, 2)
                    events.put_nowait({"model": name, "finish": piece.finish, "tokens": tokens, "took_s": took_s})
    except Exception as error:
        events.put_nowait({"model": name, "error": told(error)})
        if not isinstance(error, LlmpipeError):
            log.exception("an answer of %s failed", name)


def _pieces(turn: Turn, name: str) -> Iterator[Piece]:
    """Ask a model."""
    asked = Asked(turn.engines[name], turn.how)
    if turn.memory is None or turn.conversation is None:
        messages, _ = without_oldest(asked, None, [*turn.history, turn.question])
    else:
        messages, _ = of_memory(asked, turn.memory, turn.conversation, None, [turn.question])
    return asked.answer(messages)


def _keep(turn: Turn) -> Event:
    """Keep the answers as one message, with the first as its text; a question without any is taken back. Once only."""
    if turn.is_kept:
        return {}
    turn.is_kept = True
    memory, conversation = turn.memory, turn.conversation
    if memory is None or conversation is None or turn.id is None:
        return {"message": None}
    try:
        answers = [{"model": name, "text": turn.said[name]} for name in turn.engines if turn.said.get(name)]
        if answers:
            message = {"role": "assistant", "content": answers[0]["text"]}
            return {"message": memory.add(conversation, message, page={"answers": answers})}
        if turn.is_first:
            memory.delete(conversation)
        else:
            memory.take_back(conversation, turn.id)
        return {"message": None, "taken_back": True, "conversation": None if turn.is_first else conversation}
    except TalkError as error:
        return {"error": told(error)}
    finally:
        turn.done.set()
        if _under_way.get((memory.path, conversation)) is turn:
            del _under_way[memory.path, conversation]
