"""What of a conversation a model is sent: all of it while it fits, then what is newest and what matters.

In the order in which they get room: the system text and the newest question, facts (a quarter at most), the newest
turns whole, a summary of what fell out, and earlier messages that share words with the question. All but the turns
goes into the system text, so that roles go on taking turns and the first turn is the user's, as strict chat templates
demand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from llmpipe.errors import TalkError
from llmpipe.talk.engine import Engine, Message
from llmpipe.talk.memory import Memory
from llmpipe.talk.records import Stored, Summary
from llmpipe.talk.sent import without_results
from llmpipe.talk.summary import most, summary_of

FACTS_SHARE = 0.25
RECALL_SHARE = 0.25
"""What is kept of the room for a summary and earlier messages, once not all turns fit."""
CUT_SHARE = 0.5
"""What of the room turns fill after a cut. Until they need more than is there, the cut and its summary stay."""
MOST_FOUND = 8


@dataclass(frozen=True)
class Window:
    """What to send; `left_out` messages are not in it as turns, `found` are the ids of those it cites as earlier."""

    messages: list[Message]
    left_out: int
    summarised: bool
    found: tuple[int, ...] = ()


@dataclass
class _Draft:
    """A window in the making; it fits when its prompt has at most `room` tokens."""

    engine: Engine
    system: str
    tools: Sequence[Message]
    room: int
    turns: list[list[Stored]]
    facts: Sequence[str] = ()
    summary: str = ""
    found: Sequence[Stored] = ()

    def messages(self) -> list[Message]:
        parts = [self.system]
        if self.facts:
            parts.append("What the user asked to keep in mind:\n" + "\n".join(f"- {fact}" for fact in self.facts))
        if self.summary:
            parts.append(f"What was said before, in short:\n{self.summary}")
        if self.found:
            lines = (f"- {'You' if one.role == 'assistant' else 'The user'}: {one.content}" for one in self.found)
            parts.append("Earlier messages of this conversation:\n" + "\n".join(lines))
        system = "\n\n".join(part for part in parts if part)
        said = _alternating([one.message for turn in self.turns for one in turn])
        return [{"role": "system", "content": system}, *said] if system else said

    def tokens(self) -> int:
        return self.engine.count(self.messages(), self.tools)


def fitted(
    engine: Engine,
    memory: Memory,
    conversation: int,
    system: str | None,
    *,
    answer_tokens: int,
    tools: Sequence[Message] = (),
) -> Window:
    """Return what to send so that an answer of `answer_tokens` fits into the engine's context.

    The same conversation, facts and engine give the same window. System messages of the conversation are not sent:
    `system` is. Where not all fits, the engine may be asked for a summary, which the memory keeps.

    Raises:
        TalkError: the newest question alone does not fit, or there is none.
    """
    turns = _turns(memory.messages(conversation))
    if not turns:
        raise TalkError(f"conversation {conversation} has no question to answer", hint="ask something first")
    draft = _Draft(engine, (system or "").strip(), tools, engine.context - answer_tokens, turns[-1:])
    draft.turns = [_shortened(draft)]
    turns[-1] = draft.turns[0]
    least = draft.tokens()
    if least > draft.room:
        raise _too_long(engine, least, draft.room, answer_tokens)
    question = "\n".join(one.content for one in takewhile(lambda one: one.role == "user", turns[-1]))
    _put_facts(draft, memory, question, most_tokens=min(draft.room, least + int(draft.room * FACTS_SHARE)))
    _put_turns(draft, turns, draft.room)
    if len(draft.turns) < len(turns):
        _cut(draft, turns, memory.summary(conversation))
        left = [one for turn in turns[: len(turns) - len(draft.turns)] for one in turn]
        _put_summary(draft, summary_of(engine, memory, conversation, left, room=draft.room))
        _put_found(draft, memory.search(question, limit=MOST_FOUND, within=conversation, before=draft.turns[0][0].id))
    left_out = sum(len(turn) for turn in turns) - sum(len(turn) for turn in draft.turns)
    found = tuple(one.id for one in draft.found)
    return Window(draft.messages(), left_out, summarised=bool(draft.summary), found=found)


def _shortened(draft: _Draft) -> list[Stored]:
    """Leave out of the newest turn what tools gave, as far as it does not fit."""
    turn = draft.turns[0]

    def as_stored(messages: Sequence[Message]) -> list[Stored]:
        return [replace(one, message=message) for one, message in zip(turn, messages, strict=True)]

    def fits(messages: Sequence[Message]) -> bool:
        draft.turns = [as_stored(messages)]
        return draft.tokens() <= draft.room

    return as_stored(without_results([one.message for one in turn], fits))


def _turns(messages: Sequence[Stored]) -> list[list[Stored]]:
    """Cut a conversation into turns: a question and all that answers it; questions without an answer join the next."""
    turns: list[list[Stored]] = []
    for one in messages:
        if one.role == "user" and (not turns or any(said.role != "user" for said in turns[-1])):
            turns.append([])
        if turns and one.role != "system":
            turns[-1].append(one)
    return turns


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """Join messages of one role that follow each other; calls of tools and their results stay as they are."""
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else {}
        plain = (
            before.get("role") in ("user", "assistant") and "tool_calls" not in before and "tool_calls" not in message
        )
        if plain and before.get("role") == message["role"]:
            joined[-1] = before | {"content": _together(before.get("content"), message.get("content"))}
        else:
            joined.append(message)
    return joined


def _together(before: object, after: object) -> object:
    """Join two contents; where one is in parts, so is the result."""
    if isinstance(before, list) or isinstance(after, list):
        parts = [
            content if isinstance(content, list) else [{"type": "text", "text": content}] for content in (before, after)
        ]
        return parts[0] + parts[1]
    return "\n\n".join(str(content) for content in (before, after) if content)


def _put_facts(draft: _Draft, memory: Memory, question: str, *, most_tokens: int) -> None:
    """Put in all facts, or those that have to do with the question and the newest others."""
    every = memory.facts()
    telling = [fact.id for fact in memory.facts(about=question)]
    ranked = sorted(every, key=lambda fact: (telling.index(fact.id) if fact.id in telling else len(telling), -fact.id))

    def fits(count: int) -> bool:
        draft.facts = [fact.text for fact in sorted(ranked[:count], key=lambda fact: fact.id)]
        return draft.tokens() <= most_tokens

    fits(most(len(ranked), fits))


def _put_turns(draft: _Draft, turns: list[list[Stored]], room: int) -> None:
    """Put in as many of the newest turns as fit, one at least."""

    def fits(count: int) -> bool:
        draft.turns = turns[-count:] if count else turns[-1:]
        return draft.tokens() <= room

    fits(most(len(turns), fits))


def _cut(draft: _Draft, turns: list[list[Stored]], known: Summary | None) -> None:
    """Put in the turns that the known summary does not cover, while they leave room for it; else cut anew."""
    _put_turns(draft, turns, int(draft.room * CUT_SHARE))
    fewest = draft.turns
    uncovered = [turn for turn in turns if known and turn[0].id > known.until]
    if len(uncovered) > len(fewest):
        draft.turns = uncovered
        if draft.tokens() > draft.room - int(draft.room * RECALL_SHARE):
            draft.turns = fewest


def _put_summary(draft: _Draft, said: str) -> None:
    """Put in a summary of the turns that are left out, as much of it as fits."""
    words = said.split(" ")

    def fits(count: int) -> bool:
        draft.summary = " ".join(words[:count])
        return draft.tokens() <= draft.room

    fits(most(len(words), fits))


def _put_found(draft: _Draft, ranked: Sequence[Stored]) -> None:
    """Put in the earlier messages that fit, the most telling first; they are told in the order they were said in."""
    for one in ranked:
        if one.role in ("user", "assistant"):
            before = draft.found
            draft.found = sorted([*before, one], key=lambda said: said.id)
            if draft.tokens() > draft.room:
                draft.found = before


def _too_long(engine: Engine, tokens: int, room: int, answer_tokens: int) -> TalkError:
    return TalkError(
        f"the question has {tokens:,} tokens with the system text, and {max(0, room):,} fit: the context of "
        f"{engine.name} is {engine.context:,}, and {answer_tokens:,} are kept for the answer",
        hint="ask in fewer words, attach less, or allow a shorter answer",
    )
