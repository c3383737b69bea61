"""The log of decisions: a JSON line for each, and one for each appeal.

A decision has `time`, `reference`, `place`, `layer`, `rule`, `category`, `score`, `action` and the `sha256` of the
passage that was judged; its `text` only where the policy says so. An appeal has `time`, `reference` and `appeal`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmpipe.errors import Problem, TalkError
from llmpipe.machine import home

LONGEST_APPEAL = 2_000


def default_path() -> Path:
    """Return where the log is: `$LLMPIPE_HOME/moderation.jsonl`, or in `~/.llmpipe`."""
    return home() / "moderation.jsonl"


class Log:
    """Appends to a file that only its owner can read; several threads and processes may.

    Raises:
        TalkError: it cannot be written; nothing passes that would not be in the log.
    """

    def __init__(self, path: Path, *, keeps_text: bool = False) -> None:
        self.path, self.keeps_text = path, keeps_text
        self._append(b"")

    def decision(self, decision: Mapping[str, Any], passage: str) -> None:
        """Write a decision about a passage."""
        digest = hashlib.sha256(passage.encode("utf-8", "surrogatepass")).hexdigest()
        self._write({**decision, "sha256": digest, **({"text": passage} if self.keeps_text else {})})

    def appeal(self, reference: str, why: str) -> bool:
        """Write why a decision is said to be wrong; returns False where the log has no such decision."""
        mark = f'"reference": {json.dumps(reference)}'
        self._append(b"")  # so that a log that was taken away in between is an empty one
        with self.path.open(encoding="utf-8") as file:
            if not any(mark in line for line in file):
                return False
        self._write({"reference": reference, "appeal": why[:LONGEST_APPEAL]})
        return True

    def _write(self, content: Mapping[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._append(json.dumps({"time": now, **content}).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, line)  # in one piece, so that lines of several processes stay apart
            finally:
                os.close(file)
        except OSError as error:
            raise TalkError(
                Problem(f"the moderation log cannot be written: {error.strerror or error}", where=str(self.path)),
                hint="`log: {path: FILE}` of the policy names another one",
            ) from error
