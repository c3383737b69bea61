"""An engine whose prompts and answers are moderated; to who talks to it, it is an engine like any other.

    engine = Moderated(LocalEngine(...), moderator)

The last message is judged each time. Of the turns before it, which every request brings again, each is judged once:
what is blocked or redacted of them is not sent either. Answers in a conversation were moderated when they were made.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from llmpipe.moderation import Place
from llmpipe.moderation.moderator import Decision, Moderator, Refusal, Verdict, warnings
from llmpipe.moderation.stream import Blocked, Stream
from llmpipe.talk.engine import Engine, Message, Piece, Sampling, Usage
from llmpipe.talk.words import joined

REMEMBERED = 4096
"""Turns of conversations whose verdict is kept, by their hash."""
HELD_BACK = "[held back by moderation]"


class Moderated:
    """Moderates what an engine is asked and what it answers.

    What is said last and blocked is refused; an answer that is blocked ends with the refusal, and is finished by
    `content_filter`. A message that begins with `/appeal` goes to the log and not to the model.
    """

    def __init__(self, engine: Engine, moderator: Moderator) -> None:
        self.engine, self.moderator = engine, moderator
        self.name, self.context, self.chats = engine.name, engine.context, engine.chats
        self.refused: str | None = None
        """The reference of what was held back last, for an appeal in a terminal."""
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> int:
        """Return how many tokens a conversation has as a prompt, as it was said."""
        return self.engine.count(messages, tools)

    def chat(self, messages: Sequence[Message], how: Sampling, tools: Sequence[Message] = ()) -> Iterator[Piece]:
        """Answer a conversation.

        Raises:
            Refusal: what was said last may not be answered.
            TalkError: as the engine's, or the log cannot be written.
        """
        if appeal := self._appeal(messages):
            yield from appeal
            return
        decisions: list[Decision] = []
        last = len(messages) - 1
        sent = [self._checked(one, decisions, is_last=number == last) for number, one in enumerate(messages)]
        yield from _notes(decisions)
        yield from self._answer(lambda: self.engine.chat(sent, how, tools), lambda: self.engine.count(sent, tools))

    def complete(self, text: str, how: Sampling) -> Iterator[Piece]:
        """Continue a text.

        Raises:
            Refusal: it may not be continued.
            TalkError: as the engine's, or the log cannot be written.
        """
        message = {"role": "user", "content": text}
        if appeal := self._appeal([message]):
            yield from appeal
            return
        decisions: list[Decision] = []
        sent = self._checked(message, decisions, is_last=True)
        yield from _notes(decisions)
        yield from self._answer(lambda: self.engine.complete(sent["content"], how), lambda: self.engine.count([sent]))

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def _appeal(self, messages: Sequence[Message]) -> list[Piece]:
        said = messages[-1] if messages else {}
        told = self.moderator.appeal(joined(said.get("content"))) if said.get("role") == "user" else None
        return [Piece(told), Piece("", "stop", Usage(0, 0))] if told else []

    def _checked(self, message: Message, decisions: list[Decision], *, is_last: bool) -> Message:
        """Return a message as the engine may see it, or refuse it."""
        text = joined(message.get("content"))
        if message.get("role") == "assistant" or not text:
            return message
        place: Place = "tool" if message.get("role") == "tool" else "input"
        verdict = self._verdict(text, place, anew=is_last)
        if is_last:
            decisions += verdict.decisions
        if verdict.blocked is None:
            return message if verdict.text == text else message | {"content": verdict.text}
        if is_last and place == "input":
            self.refused = verdict.blocked.reference
            raise Refusal(self.moderator.refusal(verdict.blocked))
        return message | {"content": HELD_BACK}

    def _verdict(self, text: str, place: Place, *, anew: bool) -> Verdict:
        key = hashlib.sha256(f"{place} {text}".encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            known = None if anew else self._known.get(key)
        if known is not None:
            return known
        verdict = self.moderator.judge(text, place)
        if verdict.is_certain:
            with self._lock:
                self._known[key] = verdict
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        return verdict

    def _answer(self, ask: Callable[[], Iterator[Piece]], count: Callable[[], int]) -> Iterator[Piece]:
        """Pass an answer on as far as it may be shown."""
        stream, inner, pieces, is_begun = Stream(self.moderator), ask(), 0, False
        last = Piece("")
        said: list[Decision] = []
        try:
            for last in inner:
                pieces += bool(last.text)
                for part in stream.add(last.text):
                    is_begun = True
                    yield Piece(part)
            for part in stream.end():
                is_begun = True
                yield Piece(part)
            calls = tuple(self._call(call, said) for call in last.tool_calls)
            yield from _notes([*stream.decisions, *said])
            yield replace(last, text="", tool_calls=calls)
        except Blocked as blocked:
            self.refused = blocked.decision.reference
            refusal = self.moderator.refusal(blocked.decision)
            yield Piece(f"\n\n{refusal}" if is_begun else refusal)
            # an engine that is stopped says no more what it took: about a token for each of its pieces
            yield Piece("", "content_filter", Usage(count(), pieces))
        finally:
            close = getattr(inner, "close", None)
            if close is not None:
                close()

    def _call(self, call: dict[str, Any], decisions: list[Decision]) -> dict[str, Any]:
        """Return a tool call whose arguments may leave."""
        function = call.get("function") or {}
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (TypeError, ValueError):
            arguments = function.get("arguments")
        checked = self._leaving(arguments, decisions)
        if checked == arguments:
            return call
        return call | {"function": function | {"arguments": json.dumps(checked, ensure_ascii=False)}}

    def _leaving(self, value: Any, decisions: list[Decision]) -> Any:
        if isinstance(value, dict):
            return {key: self._leaving(one, decisions) for key, one in value.items()}
        if isinstance(value, list):
            return [self._leaving(one, decisions) for one in value]
        if not isinstance(value, str):
            return value
        verdict = self.moderator.judge(value, "output")
        decisions += verdict.decisions
        if verdict.blocked:
            raise Blocked(verdict.blocked)
        return verdict.text


def moderated(engine: Engine, moderator: Moderator | None) -> Engine:
    """Return the engine, moderated where there is a moderator."""
    return engine if moderator is None else Moderated(engine, moderator)


def _notes(decisions: Sequence[Decision]) -> Iterator[Piece]:
    return (Piece("", note=note) for note in warnings(decisions))
