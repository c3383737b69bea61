"""Dialogues as in hh-rlhf: one text with "\\n\\nHuman:" and "\\n\\nAssistant:" before the turns."""

from __future__ import annotations

import re

from llmpipe.data import Message, said

LABEL = re.compile(r"\n\n(Human|Assistant):")
ANSWER = "\n\nAssistant:"
ROLES = {"Human": "user", "Assistant": "assistant"}


def is_dialogue(text: str) -> bool:
    """Whether a text is a dialogue: it begins with `Human:` and an assistant's turn follows."""
    return text.lstrip().startswith("Human:") and ANSWER in text


def turns(text: str, name: str, wrong: list[str]) -> list[Message]:
    """Return the turns of a dialogue; what is wrong is noted under the column's name.

    Two turns of one side in a row are one: some answers were cut in two by their writers. The last answer may be
    empty, since saying nothing can be better than saying something bad; other turns may not.
    """
    parts = LABEL.split("\n\n" + text.lstrip())[1:]
    found: list[Message] = []
    for number, (label, content) in enumerate(zip(parts[::2], parts[1::2], strict=True), 1):
        role, content = ROLES[label], content.strip()
        if found and found[-1]["role"] == role:
            found[-1]["content"] = "\n\n".join(filter(None, (found[-1]["content"], content)))
        else:
            found.append(said(role, content))
        if not content and not (role == "assistant" and number * 2 == len(parts)):
            wrong.append(f"{name} turn {number} ({label}) is empty")
    return found


def shared(one: list[Message], other: list[Message]) -> int:
    """Return how many turns two conversations have in common at their start, up to the last of a user."""
    count = 0
    for number, (left, right) in enumerate(zip(one, other, strict=False), 1):
        if (left["role"], left["content"]) != (right["role"], right["content"]):
            break
        count = number if left["role"] == "user" else count
    return count


def cut(one: str, other: str) -> tuple[str, str, str]:
    """Split two dialogues into their common start, through its last `Assistant:`, and what each goes on with."""
    same = next((n for n, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), None)
    end = one[:same].rfind(ANSWER) + len(ANSWER)
    return one[:end], one[end:], other[end:]
