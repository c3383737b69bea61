"""Where rows come from: files, stages, the hub, the built-in corpus; mixed by weight, the same way every time."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from llmpipe.context import Context
from llmpipe.data import Row, storyworld
from llmpipe.data.formats import Conversation, conversations, texts
from llmpipe.data.hub import revision_of
from llmpipe.data.rows import expand, read_rows
from llmpipe.errors import DataError, StageError
from llmpipe.settings import AnySource, BuiltinSource, HubSource, PathSource, StageSource

Item = TypeVar("Item")

STORIES = 20_000
STORY_CHATS = 4_000
FEW_DOCUMENTS = 20
"""Below this, held-out text is cut from the tail of each document; a hash would hold out a whole book or none."""


def read_texts(sources: Sequence[AnySource], ctx: Context) -> Iterator[str]:
    """Yield the documents of a mix for pretraining or tokenizer training.

    Raises:
        DataError: with every bad row of a source, once all its good rows were yielded.
    """
    for number, source in enumerate(sources):
        yield from _weighted(_texts(source, ctx), source.weight, seed=ctx.seed + number)


def _texts(source: AnySource, ctx: Context) -> Iterator[str]:
    if isinstance(source, BuiltinSource):
        return storyworld.corpus(stories=source.rows or STORIES, seed=ctx.seed)
    column = (source.columns or {}).get("text") if isinstance(source, PathSource | HubSource) else None
    return texts(_rows(source, ctx), column=column)


def read_conversations(sources: Sequence[AnySource], ctx: Context) -> Iterator[tuple[Row, Conversation]]:
    """Yield the conversations of a mix for supervised fine-tuning, each with the row it came from."""
    for number, source in enumerate(sources):
        yield from _weighted(_conversations(source, ctx), source.weight, seed=ctx.seed + number)


def _conversations(source: AnySource, ctx: Context) -> Iterator[tuple[Row, Conversation]]:
    if isinstance(source, BuiltinSource):
        made = storyworld.instructions(rows=source.rows or STORY_CHATS, seed=ctx.seed)
        rows = (Row(f"storyworld: row {n}", dict(row)) for n, row in enumerate(made, 1))
        return conversations(rows, format="messages")
    options: dict[str, Any] = {}
    if isinstance(source, PathSource | HubSource):
        options = {"columns": source.columns, "format": source.format}
    return conversations(_rows(source, ctx), **options)


def _rows(source: AnySource, ctx: Context) -> Iterator[Row]:
    if isinstance(source, PathSource):
        return read_rows(expand(source.path, base=Path()))
    if isinstance(source, StageSource):
        folder = ctx.run_dir / source.stage
        found = folder / "data" if (folder / "data").is_dir() else folder / "held_out.jsonl"
        return read_rows(expand(str(found), base=Path()))
    assert isinstance(source, HubSource)
    return _hub_rows(source, ctx)


def _hub_rows(source: HubSource, ctx: Context) -> Iterator[Row]:
    import datasets

    revision = revision_of(source, ctx, kind="dataset")
    cached = datasets.DownloadConfig(local_files_only=revision is None)
    try:
        found = datasets.load_dataset(
            source.hub, source.name, split=source.split, revision=revision, download_config=cached
        )
    except Exception as error:  # a dozen classes of three libraries: offline, gated, misspelt, no such split
        message = f"{source.hub} cannot be loaded: {error}".splitlines()[0]
        raise StageError(message, hint="a copy on disk works as {path: FILES}") from error
    for number, row in enumerate(found, 1):
        yield Row(f"{source.hub}[{source.split}]: row {number}", dict(row))


def _weighted(items: Iterable[Item], weight: float, *, seed: int) -> Iterator[Item]:
    """See each item `weight` times, one after the other; for a fraction, the seed picks the items seen once more."""
    whole, part = int(weight), weight % 1
    if weight == 1:
        yield from items
        return
    picked = random.Random(seed)
    for item in items:
        for _ in range(whole + (picked.random() < part)):
            yield item


def is_held_out(key: str, share: float) -> bool:
    """Decide by a text's hash whether it is held out, so that the choice stays when rows come or go."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def split_texts(documents: Iterable[str], *, share: float) -> tuple[Iterator[str], list[str]]:
    """Split documents into those to train on (a stream) and those held out.

    The held-out list is complete once the stream is used up. With fewer than `FEW_DOCUMENTS` documents, the last
    `share` of each one's characters is held out.
    """
    documents = iter(documents)
    first = list(islice(documents, FEW_DOCUMENTS))
    held_out: list[str] = []

    def train() -> Iterator[str]:
        if len(first) < FEW_DOCUMENTS:
            for document in first:
                cut = round(len(document) * (1 - share))
                held_out.extend([document[cut:]] if document[cut:] else [])
                yield document[:cut]
            return
        for document in chain(first, documents):
            if is_held_out(document, share):
                held_out.append(document)
            else:
                yield document

    return train(), held_out


def split_conversations(
    found: Iterable[tuple[Row, Conversation]], *, share: float
) -> tuple[list[tuple[Row, Conversation]], list[tuple[Row, Conversation]]]:
    """Split conversations by the hash of what was asked, so that one question is never on both sides."""
    sides: tuple[list[tuple[Row, Conversation]], list[tuple[Row, Conversation]]] = ([], [])
    for row, conversation in found:
        asked = conversation.text or "\n".join(m["content"] for m in conversation.messages if m["role"] == "user")
        sides[is_held_out(asked, share)].append((row, conversation))
    if not sides[0]:
        raise DataError("no conversation is left to train on", hint="lower held_out.share, or add rows")
    return sides
