"""Which of several answers a person preferred: a file of pairs, in a form that `reward` and `dpo` read.

llmpipe reward --data ~/.llmpipe/preferences.jsonl …
"""

from __future__ import annotations

import threading
from pathlib import Path

from llmpipe.errors import TalkError
from llmpipe.talk.commands import PREFERENCES
from llmpipe.talk.kept import append, preference
from llmpipe.talk.memory import Memory

_entry = threading.Lock()


def kept(memory: Memory, conversation: int, message: int, chosen: str) -> tuple[int, Path]:
    """Write a pair for each answer that is worse, and let the conversation go on with the better one.

    Returns the id of the message that has it now, and the file of pairs, which lies beside the memory.

    Raises:
        TalkError: there is nothing to choose from, or it was chosen before.
    """
    with _entry:
        messages = memory.messages(conversation)
        place = next((at for at, one in enumerate(messages) if one.id == message), None)
        if place is None:
            raise TalkError(f"conversation {conversation} has no message {message}")
        extra = messages[place].page
        answers = {one["model"]: one["text"] for one in extra.get("answers", [])}
        if len(answers) < 2 or chosen not in answers:
            raise TalkError(f"message {message} has no answers of several models, {chosen} one of them")
        if extra.get("preferred"):
            raise TalkError(f"the answer of {extra['preferred']} was chosen before")
        if place != len(messages) - 1:
            raise TalkError("the conversation went on; only the last answers can be compared")
        path = memory.path.parent / PREFERENCES
        prompt = [one.message for one in messages[:place]]
        for model, text in answers.items():
            if text.strip() != answers[chosen].strip():  # the same words say nothing
                row = preference(prompt, better=answers[chosen], worse=text)
                append(path, row | {"chosen_model": chosen, "rejected_model": model})
        memory.take_back(conversation, message)
        best = {"role": "assistant", "content": answers[chosen]}
        return memory.add(conversation, best, page={**extra, "preferred": chosen}), path
