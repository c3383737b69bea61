"""What a person says of answers on the page: which of several is better, and thumbs. `llmpipe rank` has it exported."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from llmpipe.errors import TalkError
from llmpipe.ranking import feedback
from llmpipe.talk.memory import Memory
from llmpipe.talk.records import Stored

_entry = threading.Lock()


def kept(memory: Memory, conversation: int, message: int, chosen: str) -> tuple[int, Path]:
    """Keep which answer is better than all others, and let the conversation go on with it.

    Returns the id of the message that has it now, and the file that says so.

    Raises:
        TalkError: there is nothing to choose from, or it was chosen before.
    """
    with _entry:
        messages = memory.messages(conversation)
        place = _place(messages, conversation, message)
        extra = messages[place].page
        answers = _answers(messages, place, "")
        models = [one.model for one in answers]
        if len(answers) < 2 or chosen not in models:
            raise TalkError(f"message {message} has no answers of several models, {chosen} one of them")
        if extra.get("preferred"):
            raise TalkError(f"the answer of {extra['preferred']} was chosen before")
        if place != len(messages) - 1:
            raise TalkError("the conversation went on; only the last answers can be compared")
        best = models.index(chosen)
        path = feedback.keep_comparison(answers, [best], beside=memory.path.parent)
        memory.take_back(conversation, message)
        said = {"role": "assistant", "content": answers[best].text}
        return memory.add(conversation, said, page={**extra, "preferred": chosen}), path


def thumb(memory: Memory, conversation: int, message: int, model: str, *, is_good: bool) -> Path:
    """Keep that an answer is good, or bad; returns the file that says so.

    Raises:
        TalkError: there is no such answer.
    """
    messages, of = memory.messages(conversation), memory.conversation(conversation).model
    found = _answers(messages, _place(messages, conversation, message), of)
    answer = next((one for one in found if one.model == model), None)
    if answer is None:
        raise TalkError(f"message {message} has no answer of {model}")
    return feedback.keep_thumb(answer, is_good=is_good, beside=memory.path.parent)


def thumbs(memory: Memory, messages: Sequence[Stored], model: str) -> dict[tuple[int, str], bool]:
    """Return the thumbs of a conversation by message and model; `model` gave the answers of which none is named."""
    answers = [
        (one.id, answer)
        for place, one in enumerate(messages)
        if one.role == "assistant"
        for answer in _answers(messages, place, model)
    ]
    found = feedback.thumbs((answer for _, answer in answers), beside=memory.path.parent)
    pairs = zip(answers, found, strict=True)
    return {(number, answer.model): is_good for (number, answer), is_good in pairs if is_good is not None}


def _place(messages: Sequence[Stored], conversation: int, message: int) -> int:
    place = next((at for at, one in enumerate(messages) if one.id == message), None)
    if place is None:
        raise TalkError(f"conversation {conversation} has no message {message}")
    return place


def _answers(messages: Sequence[Stored], place: int, model: str) -> list[feedback.Told]:
    prompt = [one.message for one in messages[:place]]
    shown = messages[place].page.get("answers") or [{"model": model, "text": messages[place].content}]
    return [feedback.Told(prompt, one["model"], one["text"]) for one in shown]
