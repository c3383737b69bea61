"""Which of several answers a person preferred: a file of pairs, in a form that `reward` and `dpo` read.

    llmpipe reward --data ~/.llmpipe/preferences.jsonl …
"""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmpipe.errors import TalkError
from llmpipe.talk.engine import Message
from llmpipe.talk.memory import Memory, Stored

FILE = "preferences.jsonl"
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
        extra: dict[str, Any] = messages[place].message.get("page") or {}
        answers = {one["model"]: one["text"] for one in extra.get("answers", [])}
        if len(answers) < 2 or chosen not in answers:
            raise TalkError(f"message {message} has no answers of several models, {chosen} one of them")
        if extra.get("preferred"):
            raise TalkError(f"the answer of {extra['preferred']} was chosen before")
        if place != len(messages) - 1:
            raise TalkError("the conversation went on; only the last answers can be compared")
        path = memory.path.parent / FILE
        _append(path, _pairs([_plain(one) for one in messages[:place]], answers, chosen))
        memory.take_back(conversation, message)
        best = {"role": "assistant", "content": answers[chosen], "page": {**extra, "preferred": chosen}}
        return memory.add(conversation, best), path


def _plain(one: Stored) -> Message:
    return {"role": one.role, "content": one.content}


def _pairs(prompt: list[Message], answers: dict[str, str], chosen: str) -> list[dict[str, Any]]:
    """Return a row for each other answer; those with the same words say nothing."""
    return [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": answers[chosen]}],
            "rejected": [{"role": "assistant", "content": text}],
            "chosen_model": chosen,
            "rejected_model": model,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        for model, text in answers.items()
        if text.strip() != answers[chosen].strip()
    ]


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append in one write, so that two processes do not mix their lines; only the user may read it."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(lines.encode())
