"""A conversation with a model: prepares what is sent, keeps what was said, takes turns back.

    session = Session(engine, memory, system="Answer in one sentence.")
    for part in session.say("Why is the sky blue?"):
        ...  # Piece: a part of the answer; Note: a step to show

With a memory, turns are stored as they are said, and what is sent is chosen by `window`; without one they live here,
and the oldest are left out once the model's context is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmpipe.errors import TalkError, did_you_mean
from llmpipe.talk.attachments import Attachment, with_files
from llmpipe.talk.calling import with_tools
from llmpipe.talk.deep_search import deep_search
from llmpipe.talk.engine import Engine, Message, Piece, Sampling
from llmpipe.talk.kit import Kit
from llmpipe.talk.parts import Note, Parts, Step, Steps
from llmpipe.talk.sent import Asked, last_turn, of_memory, with_system, without_oldest

if TYPE_CHECKING:
    from llmpipe.talk.memory import Memory


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
        kit: Kit | None = None,
    ) -> None:
        self.engine, self.memory, self.system, self.sampling = engine, memory, system, sampling
        self.conversation, self.kit = conversation, kit
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
        if name not in MODES:
            known = did_you_mean(name, list(MODES)) or f"; there is {', '.join(MODES)}"
            raise TalkError(f"there is no mode {name!r}{known}")
        self._mode = name

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, the system text first."""
        return with_system(self.system, [turn.message for turn in self._turns])

    @property
    def question(self) -> str | None:
        """What the user said last."""
        return next((str(turn.message["content"]) for turn in reversed(self._turns) if _is_question(turn)), None)

    @property
    def asked(self) -> list[Message]:
        """The conversation up to what the user said last."""
        turns = self.messages
        return turns[: -len(last_turn(turns))] + last_turn(turns)[:1]

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
        content = (self.kit.told_of_files() if self.kit else "") + content
        if self._turns and _is_question(self._turns[-1]):
            self._take_back(len(self._turns) - 1)
        self._add([{"role": "user", "content": content}])
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
        other = Asked(engine, self.sampling)
        messages, _ = without_oldest(other, self.system, asked)
        yield from other.answer(messages)

    def ask(self, tools: Sequence[Message] = ()) -> Parts:
        """Have the model go on after all that was said so far, in steps too; what it says is not kept."""
        asked = Asked(self.engine, self.how(), tools)
        turns = [turn.message for turn in self._turns]
        if self.memory is None or self.conversation is None:
            messages, left_out = without_oldest(asked, self.system, turns)
        else:
            messages, left_out = of_memory(asked, self.memory, self.conversation, self.system, last_turn(turns))
        yield from self.left_out(left_out)
        yield from asked.answer(messages)

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
        """Pass the mode's answer on, and keep its steps, and as much of the rest as came, whatever ends it."""
        said: list[str] = []
        try:
            with closing(MODES[self.mode](self)) as answer:
                for part in answer:
                    if isinstance(part, Step):
                        self._add(part.messages)
                        said.clear()
                        continue
                    if isinstance(part, Piece):
                        said.append(part.text)
                    yield part
        finally:
            if (text := "".join(said)).strip():
                self._add([{"role": "assistant", "content": text}])

    def _add(self, messages: Sequence[Message]) -> None:
        numbers: Sequence[int | None] = [None] * len(messages)
        if self.memory is not None:
            if self.conversation is None:  # only now, so that looking in leaves no empty conversation behind
                self.conversation = self.memory.begin(self.engine.name)
            numbers = self.memory.add_all(self.conversation, messages)
        self._turns += [_Turn(*pair) for pair in zip(messages, numbers, strict=True)]

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


def _chat(session: Session) -> Steps:
    """Answer from what the model knows, and by the tools that it has."""
    if session.kit is None or not session.kit.offered() or not session.engine.chats:
        yield from session.ask()
    else:
        yield from with_tools(session.ask, session.kit)


def _deep_search(session: Session) -> Steps:
    """Answer from the web, with sources."""
    asked = Asked(session.engine, session.how())
    yield from deep_search(session.kit, asked, session.asked[:-1], session.question or "")


MODES: dict[str, Callable[[Session], Steps]] = {"chat": _chat, "deep-search": _deep_search}
"""How an answer comes about, by name."""
