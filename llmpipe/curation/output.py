"""What a curate stage writes: texts to train on, in files of a size that can be handled, and texts set aside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llmpipe.curation import Document

SHARD_BYTES = 256_000_000


@dataclass
class Size:
    """How much text went by."""

    documents: int = 0
    bytes: int = 0

    def watch(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass documents on."""
        for document in documents:
            self.documents += 1
            self.bytes += len(document.text.encode("utf-8"))
            yield document


def write(sides: Iterable[tuple[str, bool]], folder: Path) -> dict[str, int]:
    """Write texts, each with whether it is set aside; returns how many went where."""
    train, validation = Shards(folder, "train-{:05}.jsonl"), Shards(folder, "validation.jsonl", limit_bytes=None)
    for text, is_held in sides:
        (validation if is_held else train).add(text)
    for side in (train, validation):
        side.close()
    return {"train_documents": train.documents, "validation_documents": validation.documents}


class Shards:
    """JSON lines in files of at most `limit_bytes`, or in one; no file comes to be before there is something in it."""

    def __init__(self, folder: Path, name: str, *, limit_bytes: int | None = SHARD_BYTES) -> None:
        self.folder, self.name, self.limit_bytes = folder, name, limit_bytes
        self.documents = self._files = self._bytes = 0
        self._file: IO[bytes] | None = None

    def add(self, text: str) -> None:
        """Write a text."""
        line = json.dumps({"text": text}, ensure_ascii=False).encode("utf-8") + b"\n"
        if self._file is None or (self.limit_bytes and self._bytes and self._bytes + len(line) > self.limit_bytes):
            self.close()
            self._file = (self.folder / self.name.format(self._files)).open("wb")
            self._files, self._bytes = self._files + 1, 0
        self._bytes += self._file.write(line)
        self.documents += 1

    def close(self) -> None:
        """End the file at hand."""
        if self._file is not None:
            self._file.close()
