"""An even sample of texts, taken while they stream by: no more than so many bytes, on disk, however many come."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

LENGTH = struct.Struct("<Q")  # bytes of the text behind it


class EvenSample:
    """Texts in a file; once more than `max_bytes` have come, each of them has had the same chance to be there.

    Of too many, half go, drawn at random, and of those that come later only as large a share is taken as has stayed of
    the others. So the sample is between a half and all of `max_bytes`, in the order in which it came. One text always
    stays, however long it is.
    """

    def __init__(self, path: Path, *, max_bytes: int, seed: int) -> None:
        self.path, self.max_bytes = path, max_bytes
        self.documents = self.bytes = 0
        self.share = 1.0
        """Of the texts so far, those that have had a place in the end."""
        self._random = random.Random(seed)
        self._file = path.open("wb")

    def add(self, text: str) -> None:
        """Offer a further text."""
        if self.share == 1 or self._random.random() < self.share:
            self._write(text.encode("utf-8"))
            while self.bytes > self.max_bytes and self.documents > 1:
                self._halve()

    def __iter__(self) -> Iterator[str]:
        return (text.decode("utf-8") for text in self._read())

    def _write(self, text: bytes) -> None:
        self._file.write(LENGTH.pack(len(text)) + text)
        self.documents += 1
        self.bytes += len(text)

    def _read(self) -> Iterator[bytes]:
        self._file.flush()
        with self.path.open("rb") as file:
            for _ in range(self.documents):
                yield file.read(*LENGTH.unpack(file.read(LENGTH.size)))

    def _halve(self) -> None:
        """Draw those that stay as they are read (Knuth, The Art of Computer Programming 3.4.2, algorithm S)."""
        stay = EvenSample(self.path.with_suffix(".half"), max_bytes=self.max_bytes, seed=0)
        half = (self.documents + 1) // 2
        for place, text in enumerate(self._read()):
            if self._random.random() * (self.documents - place) < half - stay.documents:
                stay._write(text)
        self._file.close()
        self._file = stay._file
        stay.path.replace(self.path)
        self.documents, self.bytes, self.share = stay.documents, stay.bytes, self.share / 2
