"""A conversation with a model: prepares what is sent, keeps what was said, takes turns back.

    session = Session(engine, memory, system="Answer in one sentence.")
    for part in session.say("Why is the sky blue?"):
        ...  # Piece: a part of the answer; Note: a step to show

With a memory, turns are stored as they are said, and what is sent is chosen by `window`; without one they live here,
and the oldest are left out once the model's context is full.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmpipe.errors import TalkError, did_you_mean
from llmpipe.talk.attachments import Attachment, with_files
from llmpipe.talk.engine import Engine, Message, Piece, Sampling

if TYPE_CHECKING:
    from llmpipe.talk.memory import Memory


Parts = Generator["Piece | Note", None, None]
"""An answer as it comes; closing it stops the model."""


@dataclass(frozen=True)
class Note:
    """A step on the way to an answer, to be shown beside it."""

    text: str


@dataclass(frozen=True)
class _Turn:
    """A message, and the number under which the memory keeps it."""

    message: Message
    id: int | None


class Session:
    """One conversation. For one thread at a time; engines and memories may be shared.

    Closing the iterator of an answer stops the model and keeps what was said until then. A question that got no answer
    can be retried, and is taken back when another one is asked.
    """

    def __init__(
        self,
        engine: Engine,
        memory: Memory | None = None,
        *,
        system: str | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
        conversation: int | None = None,
    ) -> None:
        self.engine, self.memory, self.system, self.sampling = engine, memory, system, sampling
        self.conversation = conversation
        self._mode = "chat"
        self._retries = self._left_out = 0
        self._turns: list[_Turn] = []
        if memory is not None and conversation is not None:
            self._turns = [_Turn(stored.message, stored.id) for stored in memory.messages(conversation)]

    @property
    def mode(self) -> str:
        """How answers are made: a name in `MODES`."""
        return self._mode

    @mode.setter
    def mode(self, name: str) -> None:
        if name in NOT_YET:
            raise TalkError(f"{name} is not there yet: {NOT_YET[name]}")
        if name not in MODES:
            known = did_you_mean(name, list(MODES)) or f"; there is {', '.join(MODES)}"
            raise TalkError(f"there is no mode {name!r}{known}")
        self._mode = name

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, the system text first."""
        return _with_system(self.system, [turn.message for turn in self._turns])

    @property
    def question(self) -> str | None:
        """What the user said last."""
        return next((str(turn.message["content"]) for turn in reversed(self._turns) if _is_question(turn)), None)

    @property
    def answer(self) -> str | None:
        """What was answered to it."""
        last = self._turns[-1].message if self._turns else {}
        return str(last["content"]) if last.get("role") == "assistant" else None

    def say(self, text: str, attachments: Sequence[Attachment] = ()) -> Parts:
        """Say something, with files to go along, and yield the answer as it comes.

        Raises:
            TalkError: there is nothing to answer, it does not fit, or the model fails.
        """
        content = with_files(text, attachments)
        if not content.strip():
            raise TalkError("there is nothing to answer")
        if self._turns and _is_question(self._turns[-1]):
            self._take_back(len(self._turns) - 1)
        self._add({"role": "user", "content": content})
        self._retries = 0
        yield from self._answer()

    def retry(self) -> Parts:
        """Forget the last answer and yield another one; a fixed seed counts up for it.

        Raises:
            TalkError: nothing was asked yet, or as `say`.
        """
        self._take_back(self._last_question("to retry") + 1)
        self._retries += 1
        yield from self._answer()

    def undo(self) -> str:
        """Take the last question and its answer back; returns the question.

        Raises:
            TalkError: nothing was asked yet.
        """
        last = self._last_question("to undo")
        question = str(self._turns[last].message["content"])
        self._take_back(last)
        return question

    def asked_of(self, engine: Engine) -> Parts:
        """Have another model answer the last question after the same turns; nothing of it is kept.

        Raises:
            TalkError: nothing was asked yet, or as `say`.
        """
        last = self._last_question("to compare")
        asked = [turn.message for turn in self._turns[: last + 1]]
        messages, _ = without_oldest(engine, self.system, asked, self.sampling)
        yield from answered(engine, messages, self.sampling)

    def prepared(self) -> tuple[list[Message], int]:
        """Return what to send of the conversation, and how many turns had to be left out."""
        turns = [turn.message for turn in self._turns]
        if self.memory is None or self.conversation is None:
            return without_oldest(self.engine, self.system, turns, self.sampling)
        return of_memory(self.engine, self.memory, self.conversation, self.system, turns[-1], self.sampling)

    def how(self) -> Sampling:
        """Return how the next answer is sampled: another try of the same question has another seed."""
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=seed + self._retries)

    def left_out(self, turns: int) -> Iterator[Note]:
        """Say how many turns no longer fit, once for each number."""
        if turns != self._left_out and turns:
            yield Note(f"the context is full: {turns} earlier {'turns are' if turns > 1 else 'turn is'} left out")
        self._left_out = turns

    def _answer(self) -> Parts:
        """Pass the mode's answer on, and keep as much of it as came, whatever ends it."""
        said: list[str] = []
        answer = MODES[self.mode](self)
        try:
            for part in answer:
                if isinstance(part, Piece):
                    said.append(part.text)
                yield part
        finally:
            answer.close()
            if (text := "".join(said)).strip():
                self._add({"role": "assistant", "content": text})

    def _add(self, message: Message) -> None:
        number = None
        if self.memory is not None:
            if self.conversation is None:  # only now, so that looking in leaves no empty conversation behind
                self.conversation = self.memory.begin(self.engine.name)
            number = self.memory.add(self.conversation, message)
        self._turns.append(_Turn(message, number))

    def _take_back(self, first: int) -> None:
        """Drop this turn and all after it."""
        gone = self._turns[first:]
        if gone and self.memory is not None and self.conversation is not None and gone[0].id is not None:
            self.memory.take_back(self.conversation, gone[0].id)
        del self._turns[first:]

    def _last_question(self, purpose: str) -> int:
        asked = [number for number, turn in enumerate(self._turns) if _is_question(turn)]
        if not asked:
            raise TalkError(f"there is nothing {purpose} yet", hint="say something first")
        return asked[-1]


def _is_question(turn: _Turn) -> bool:
    return bool(turn.message["role"] == "user")


def _with_system(system: str | None, turns: Sequence[Message]) -> list[Message]:
    return [*([{"role": "system", "content": system}] if system else ()), *turns]


def answer_tokens(engine: Engine, how: Sampling, asked: Sequence[Message]) -> int:
    """Return how much of the context is kept free for an answer.

    That is what it may have, at most half, and less where the question needs more than the other half.
    """
    return max(1, min(how.max_new_tokens, engine.context // 2, engine.context - engine.count(asked)))


def of_memory(
    engine: Engine, memory: Memory, conversation: int, system: str | None, question: Message, how: Sampling
) -> tuple[list[Message], int]:
    """Return what to send of a conversation whose newest message is the question, and how many were left out.

    A model that knows no turns sees the last text alone.
    """
    if not engine.chats:
        return [question], 0
    from llmpipe.talk.window import fitted

    room = answer_tokens(engine, how, _with_system(system, [question]))
    window = fitted(engine, memory, conversation, system, answer_tokens=room)
    return list(window.messages), window.left_out


def without_oldest(
    engine: Engine, system: str | None, turns: Sequence[Message], how: Sampling
) -> tuple[list[Message], int]:
    """Leave out the oldest questions with their answers until the rest fits; the last question stays.

    A model that knows no turns sees the last text alone.
    """
    if not engine.chats:
        return list(turns[-1:]), 0
    starts = [number for number, turn in enumerate(turns) if turn["role"] == "user"]
    most = engine.context - answer_tokens(engine, how, _with_system(system, turns[starts[-1] :]))
    for start in starts[:-1]:
        if engine.count(messages := _with_system(system, turns[start:])) <= most:
            return messages, start
    return _with_system(system, turns[starts[-1] :]), starts[-1]


def _chat(session: Session) -> Parts:
    """Answer from what the model knows."""
    messages, left_out = session.prepared()
    yield from session.left_out(left_out)
    yield from answered(session.engine, messages, session.how())


def answered(engine: Engine, messages: Sequence[Message], how: Sampling) -> Iterator[Piece]:
    """Have a model answer; one that knows no turns goes on with the last text."""
    if engine.chats:
        return engine.chat(messages, how)
    return engine.complete(str(messages[-1]["content"]), how)


MODES: dict[str, Callable[[Session], Parts]] = {"chat": _chat}
"""How an answer comes about, by name."""
NOT_YET = {"deep-search": "it searches, takes notes and names its sources, and llmpipe has no tools to search with yet"}
"""Modes to come, with what is missing."""
