"""One turn of the page: a question, and the answers of one model or of several side by side.

The models answer at once, each in a thread of its own, and their pieces go out as one stream.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpipe.errors import LlmpipeError, TalkError
from llmpipe.talk.attachments import Attachment, with_files
from llmpipe.talk.calling import with_tools
from llmpipe.talk.deep_search import deep_search
from llmpipe.talk.engine import Engine, Message, Sampling
from llmpipe.talk.kit import Kit
from llmpipe.talk.memory import Memory
from llmpipe.talk.parts import Note, Parts, Step, Steps
from llmpipe.talk.sent import Asked, last_turn, of_memory, without_oldest
from llmpipe.talk.serve.answers import Answers
from llmpipe.talk.serve.consent import Desk

Event = dict[str, Any]
log = logging.getLogger("uvicorn.error")
STOPPED_WITHIN_S = 5.0


@dataclass
class Turn:
    """A question and its answers so far, by model; `conversation` and `id` of the question are None where unkept.

    Where one model answers, it may use the tools of the `desk`.
    """

    engines: Mapping[str, Engine]
    memory: Memory | None
    conversation: int | None
    question: Message
    history: Sequence[Message] = ()
    how: Sampling = field(default_factory=Sampling)
    mode: str = "chat"
    desk: Desk | None = None
    id: int | None = None
    is_first: bool = False
    is_kept: bool = False
    said: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    steps: list[Message] = field(default_factory=list)
    keeping: threading.Lock = field(default_factory=threading.Lock)
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
    begun_s, loop = time.monotonic(), asyncio.get_running_loop()

    def tell(event: Event) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody reads any more
            loop.call_soon_threadsafe(events.put_nowait, {"model": name, **event})

    try:
        async with aclosing(answers.of(lambda: _parts(turn, name, _kit(turn, tell)))) as parts:
            async for part in parts:
                if isinstance(part, Note):
                    turn.notes.append(part.text)
                    events.put_nowait({"model": name, "note": part.text})
                    continue
                if part.text:
                    turn.said[name] = turn.said.get(name, "") + part.text
                    events.put_nowait({"model": name, "text": part.text})
                if part.note:
                    events.put_nowait({"model": name, "note": part.note})
                if part.finish:
                    tokens = part.usage.answer_tokens if part.usage else None
                    took_s = round(time.monotonic() - begun_s, 2)
                    events.put_nowait({"model": name, "finish": part.finish, "tokens": tokens, "took_s": took_s})
    except Exception as error:
        events.put_nowait({"model": name, "error": told(error)})
        if not isinstance(error, LlmpipeError):
            log.exception("an answer of %s failed", name)


def _kit(turn: Turn, tell: Callable[[Event], None]) -> Kit | None:
    """Return the tools for a turn; several models side by side get none."""
    desk = turn.desk
    if desk is None or len(turn.engines) > 1:
        return None
    return desk.kit(turn.conversation, lambda wish: desk.ask(wish, tell, turn.done.is_set))


def _parts(turn: Turn, name: str, kit: Kit | None) -> Parts:
    """Ask a model; its steps are kept as they come."""
    engine = turn.engines[name]
    with closing(_steps(turn, engine, kit)) as parts:
        for part in parts:
            if not isinstance(part, Step):
                yield part
                continue
            with turn.keeping:
                if turn.is_kept:  # the answer was stopped while a tool was at work
                    return
                turn.steps += part.messages
                if turn.memory is not None and turn.conversation is not None:
                    turn.memory.add_all(turn.conversation, part.messages)


def _steps(turn: Turn, engine: Engine, kit: Kit | None) -> Steps:
    def ask(tools: Sequence[Message] = ()) -> Parts:
        asked = Asked(engine, turn.how, tools)
        last = [turn.question, *turn.steps]
        if turn.memory is None or turn.conversation is None:
            messages, _ = without_oldest(asked, None, [*turn.history, *last])
        else:
            messages, _ = of_memory(asked, turn.memory, turn.conversation, None, last)
        yield from asked.answer(messages)

    if turn.mode == "deep-search":
        question = str(turn.question["content"])
        yield from deep_search(kit, Asked(engine, turn.how), _before(turn), question)
    elif kit is not None and kit.offered() and engine.chats:
        yield from with_tools(ask, kit)
    else:
        yield from ask()


def _before(turn: Turn) -> list[Message]:
    """Return what was said before the question."""
    if turn.memory is None or turn.conversation is None:
        return list(turn.history)
    said = [one.message for one in turn.memory.messages(turn.conversation)]
    return said[: len(said) - len(last_turn(said))]


def _keep(turn: Turn) -> Event:
    """Keep the answers as one message, with the first as its text; a question without any is taken back. Once only."""
    with turn.keeping:
        if turn.is_kept:
            return {}
        turn.is_kept = True
    memory, conversation = turn.memory, turn.conversation
    if memory is None or conversation is None or turn.id is None:
        return {"message": None}
    try:
        answers: list[dict[str, Any]] = [
            {"model": name, "text": turn.said[name]} for name in turn.engines if turn.said.get(name)
        ]
        if answers:
            answers[0] |= {"notes": turn.notes} if turn.notes else {}
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
