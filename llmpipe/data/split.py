"""Which texts and rows are kept from training: by a hash, so that the choice stays when others come or go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Protocol, TypeVar

from llmpipe.data import Row
from llmpipe.errors import DataError

FEW_DOCUMENTS = 20
"""Below this, held-out text is cut from the tail of each document; a hash would hold out a whole book or none."""


class Asked(Protocol):
    """What a row teaches, with what was asked for."""

    @property
    def asked(self) -> str:
        """What decides on which side of a split it falls."""
        ...


Asking = TypeVar("Asking", bound=Asked)


def place(key: str) -> int:
    """Return a text's hash as a number of 64 bits, the same one always and everywhere."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def is_held_out(key: str, share: float) -> bool:
    """Decide by a text's hash whether it is held out, so that the choice stays when rows come or go."""
    return place(key) < share * 2**64


def sides(documents: Iterable[str], *, share: float) -> Iterator[tuple[str, bool]]:
    """Yield each document with whether it is held out, in their order.

    With fewer than `FEW_DOCUMENTS` documents, the last `share` of each one's characters is held out.
    """
    documents = iter(documents)
    first = list(islice(documents, FEW_DOCUMENTS))
    if len(first) == FEW_DOCUMENTS:
        yield from ((document, is_held_out(document, share)) for document in chain(first, documents))
        return
    for document in first:
        cut = round(len(document) * (1 - share))
        yield document[:cut], False
        if document[cut:]:
            yield document[cut:], True


def split_texts(documents: Iterable[str], *, share: float, mixed: bool = False) -> tuple[Iterator[str], list[str]]:
    """Split documents into those to train on (a stream) and those held out, complete once the stream is used up.

    Those of a mix are put in an order by hash: only so many tokens of them are measured, and one source comes after
    the other in the stream. (Training reads its rows in random order.)
    """
    held_out: list[str] = []

    def train() -> Iterator[str]:
        for text, is_held in sides(documents, share=share):
            if is_held:
                held_out.append(text)
            else:
                yield text
        if mixed:
            held_out.sort(key=place)

    return train(), held_out


def split_by_prompt(
    found: Iterable[tuple[Row, Asking]], *, share: float
) -> tuple[list[tuple[Row, Asking]], list[tuple[Row, Asking]]]:
    """Split rows of any kind into those to train on and those held out, by what was asked.

    It is decided by the hash of the user's words, so that one prompt is never on both sides, and on the same side in
    every stage with the same share.
    """
    sides: tuple[list[tuple[Row, Asking]], list[tuple[Row, Asking]]] = ([], [])
    for row, item in found:
        sides[is_held_out(item.asked, share)].append((row, item))
    if not sides[0]:
        raise DataError("no row is left to train on", hint="lower held_out.share, or add rows")
    return sides
