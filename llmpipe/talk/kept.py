"""What a chat leaves for training: conversations that `sft` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmpipe.artifact import cannot_write
from llmpipe.errors import Problem, TalkError
from llmpipe.talk.calls import written_out
from llmpipe.talk.engine import Message


def conversation(messages: Sequence[Message]) -> dict[str, Any]:
    """Return a conversation as a row of messages, less a question without an answer.

    Raises:
        TalkError: nothing was answered.
    """
    turns = written_out(messages)
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise TalkError("there is no answer to save yet", hint="say something first")
    return {"messages": turns}


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a file of JSON lines, which is made where there is none.

    Raises:
        LlmpipeError: it is named otherwise, or cannot be written.
    """
    if path.suffix != ".jsonl":
        raise TalkError(Problem("is no name for JSON lines", where=str(path)), hint=f"{path.with_suffix('.jsonl')}")
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    try:
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read() == b"\n" else b"\n" + line  # whoever wrote last left the line open
            file.write(line)
    except OSError as error:
        raise cannot_write(error, path) from error
