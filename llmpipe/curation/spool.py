"""What the engine keeps of a corpus between two passes: its texts, and keys of them, on disk and not in memory."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from llmpipe.curation import Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEAD = struct.Struct("<III")  # bytes of `where`, bytes of the text, units
OFFSET = struct.Struct("<Q")
BUCKETS = 256
HELD_BYTES = 2 << 20
ARRAYS_BYTES = 256
"""What two arrays take beside their values: rows may come one by one."""


class Spool:
    """Documents in a file, each with its number of units; read in order, or one by its number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents = self.units = self._bytes = 0
        self._texts, self._offsets = path.open("wb"), path.with_suffix(".offsets").open("wb")

    def add(self, document: Document, units: int) -> None:
        """Append a document."""
        where = document.where.encode("utf-8", "surrogatepass")
        text = document.text.encode("utf-8", "surrogatepass")
        self._offsets.write(OFFSET.pack(self._bytes))
        self._bytes += self._texts.write(HEAD.pack(len(where), len(text), units) + where + text)
        self.documents += 1
        self.units += units

    def close(self) -> None:
        """End the writing."""
        self._texts.close()
        self._offsets.close()

    def __iter__(self) -> Iterator[tuple[Document, int]]:
        with self.path.open("rb") as file:
            for _ in range(self.documents):
                yield _read(file)

    def remove(self) -> None:
        """Free the disk."""
        self.path.unlink()
        self.path.with_suffix(".offsets").unlink()


class Shelf:
    """A spool that was written, in any process; gives documents by number."""

    def __init__(self, path: Path) -> None:
        self._texts, self._offsets = path.open("rb"), path.with_suffix(".offsets").open("rb")

    def __getitem__(self, number: int) -> Document:
        self._offsets.seek(number * OFFSET.size)
        self._texts.seek(*OFFSET.unpack(self._offsets.read(OFFSET.size)))
        return _read(self._texts)[0]

    def close(self) -> None:
        """Close its files."""
        self._texts.close()
        self._offsets.close()


def _read(file: BinaryIO) -> tuple[Document, int]:
    where, text, units = HEAD.unpack(file.read(HEAD.size))
    place = file.read(where).decode("utf-8", "surrogatepass")
    return Document(file.read(text).decode("utf-8", "surrogatepass"), place), units


class Buckets:
    """Rows of unsigned numbers, spread over files so that each alone can be sorted in memory.

    Rows that are to meet must be given the same bucket, 0 to 255. With buckets in the order of the rows' first column,
    they come out in order as a whole.
    """

    def __init__(self, folder: Path, columns: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.columns = folder, columns
        self._held: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []
        self._held_bytes = 0

    def add(self, rows: NDArray[np.uint64], buckets: NDArray[np.uint64]) -> None:
        """Add rows `(rows, columns)`; `buckets` `(rows,)` says where each belongs."""
        self._held.append((rows, buckets.astype("u1")))
        self._held_bytes += rows.nbytes + len(buckets) + ARRAYS_BYTES
        if self._held_bytes >= HELD_BYTES:
            self._write()

    def _write(self) -> None:
        import numpy as np

        if not self._held:
            return
        rows, buckets = map(np.concatenate, zip(*self._held, strict=True))
        self._held, self._held_bytes = [], 0
        order = np.argsort(buckets, kind="stable")
        starts = np.searchsorted(buckets[order], np.arange(BUCKETS + 1))
        ordered = np.ascontiguousarray(rows[order], dtype="<u8")
        # Files are opened for each write, since some systems let a process have 256 of them.
        for bucket in np.flatnonzero(np.diff(starts)):
            with (self.folder / f"{bucket:03}").open("ab") as file:
                ordered[starts[bucket] : starts[bucket + 1]].tofile(file)

    def sorted(self) -> Iterator[NDArray[np.uint64]]:
        """Yield the rows of each bucket, sorted by the columns from left to right; the files go as they are read."""
        import numpy as np

        self._write()
        for path in sorted(self.folder.iterdir()):
            rows = np.fromfile(path, dtype="<u8").reshape(-1, self.columns)
            path.unlink()
            yield rows[np.lexsort(rows.T[::-1])]
        shutil.rmtree(self.folder)


class Bits:
    """A set of numbers below a limit, one bit for each."""

    def __init__(self, limit: int) -> None:
        self._bytes = bytearray(limit // 8 + 1)

    def add(self, number: int) -> None:
        """Put a number in."""
        self._bytes[number >> 3] |= 1 << (number & 7)

    def __contains__(self, number: int) -> bool:
        return bool(self._bytes[number >> 3] & 1 << (number & 7))
