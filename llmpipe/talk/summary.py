"""What fell out of a context window, in short: by the model itself where it chats, else the first sentences.

A summary covers a conversation up to a message and is kept in the memory; once more fell out, it is made anew, from the
one before and what came since.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from llmpipe.errors import TalkError
from llmpipe.talk.engine import Engine, Message, Sampling
from llmpipe.talk.memory import Memory
from llmpipe.talk.records import Stored, Summary

ROOM_SHARE, MOST_TOKENS = 0.125, 200
CLIP_CHARS = 500
"""What a model is given of a message to sum up."""
SENTENCE_CHARS = 120
ASKED = (
    "Sum up this conversation in a few sentences: names, facts, wishes and decisions that matter for what comes next. "
    "Write only the summary."
)


def summary_of(engine: Engine, memory: Memory, conversation: int, left: Sequence[Stored], *, room: int) -> str:
    """Return a summary of messages that do not fit; `room` is the tokens that a prompt may have."""
    known = memory.summary(conversation)
    said = [one for one in left if one.role in ("user", "assistant")]  # what tools gave is nobody's word
    new = [one for one in said if one.content and not (known and one.id <= known.until)]
    if not new:
        return known.text if known else ""
    tokens = min(MOST_TOKENS, int(room * ROOM_SHARE))
    text = _asked(engine, known, new, tokens) or extract(left, chars=4 * tokens)
    memory.keep_summary(conversation, Summary(left[-1].id, text))
    return text


def _asked(engine: Engine, known: Summary | None, new: Sequence[Stored], tokens: int) -> str:
    """Have the model sum up; "" where it cannot."""
    if not engine.chats or tokens < 1:
        return ""

    def fits(count: int) -> bool:
        return engine.count(_request(known, new[len(new) - count :])) + tokens <= engine.context

    try:
        if count := most(len(new), fits):  # of more than fits, the newest
            pieces = engine.chat(
                _request(known, new[-count:]), Sampling(max_new_tokens=tokens, temperature=0.0, seed=0)
            )
            return "".join(piece.text for piece in pieces).strip()
    except TalkError:
        pass  # the conversation goes on with an extract; if the model is gone, its answer says so
    return ""


def _request(known: Summary | None, new: Sequence[Stored]) -> list[Message]:
    parts = [ASKED]
    if known:
        parts.append(f"What came before: {known.text}")
    parts.append("\n".join(f"{one.role}: {one.content[:CLIP_CHARS]}" for one in new))
    return [{"role": "user", "content": "\n\n".join(parts)}]


def extract(left: Sequence[Stored], *, chars: int) -> str:
    """Return the first sentences of what the user said, as many of the newest as `chars` allow, the oldest first."""
    taken: list[str] = []
    for one in reversed(left):
        sentence = _first_sentence(one.content) if one.role == "user" else ""
        if sentence and sentence not in taken:
            chars -= len(sentence) + 3
            if chars < 0:
                break
            taken.append(sentence)
    return "\n".join(f"- {sentence}" for sentence in reversed(taken))


def _first_sentence(text: str) -> str:
    line = " ".join(text.split())
    sentence = re.split(r"(?<=[.!?])\s|(?<=[。！？])", line, maxsplit=1)[0]
    return sentence if len(sentence) <= SENTENCE_CHARS else sentence[: SENTENCE_CHARS - 1].rstrip() + "…"


def most(count: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number up to `count` that fits; 0 does, and what fits more also fits less."""
    if fits(count):
        return count
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
