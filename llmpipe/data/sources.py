"""Where rows come from: files, stages, the hub, the built-in corpus; mixed by weight, the same way every time."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from llmpipe.context import Context
from llmpipe.data import Row, said, storyworld
from llmpipe.data.classes import Classed, classed
from llmpipe.data.formats import Conversation, conversations, texts
from llmpipe.data.hub import revision_of
from llmpipe.data.labelled import Labelled, labelled
from llmpipe.data.preferences import Preference, Prompt, preferences
from llmpipe.data.prompts import prompts
from llmpipe.data.rows import expand, read_rows
from llmpipe.errors import DataError, Problem, StageError
from llmpipe.settings import AnySource, BuiltinSource, HubSource, PathSource, StageSource

Item = TypeVar("Item")
Asking = TypeVar("Asking", Conversation, Preference, Labelled, Prompt, Classed)

STORIES = 20_000
STORY_CHATS = 4_000
STORY_PAIRS = 2_000
STORY_PROMPTS = 432
"""Every request of the training side once."""
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
        return storyworld.corpus(stories=source.rows or STORIES, seed=ctx.seed, style=source.style)
    column = (source.columns or {}).get("text") if isinstance(source, PathSource | HubSource) else None
    return texts(_rows(source, ctx), column=column)


def read_conversations(sources: Sequence[AnySource], ctx: Context) -> Iterator[tuple[Row, Conversation]]:
    """Yield the conversations of a mix for supervised fine-tuning, each with the row it came from."""
    for number, source in enumerate(sources):
        yield from _weighted(_conversations(source, ctx), source.weight, seed=ctx.seed + number)


def _conversations(source: AnySource, ctx: Context) -> Iterator[tuple[Row, Conversation]]:
    if isinstance(source, BuiltinSource):
        made = storyworld.instructions(rows=source.rows or STORY_CHATS, seed=ctx.seed, style=source.style)
        return conversations(_story_rows(made), format="messages")
    return conversations(_rows(source, ctx), **_reading(source))


def read_preferences(sources: Sequence[AnySource], ctx: Context) -> Iterator[tuple[Row, Preference]]:
    """Yield the preferences of a mix for a reward model, each with the row it came from; a row may have several."""
    for number, source in enumerate(sources):
        yield from _weighted(_preferences(source, ctx), source.weight, seed=ctx.seed + number)


def _preferences(source: AnySource, ctx: Context) -> Iterator[tuple[Row, Preference]]:
    if isinstance(source, BuiltinSource):
        made = storyworld.preferences(rows=source.rows or STORY_PAIRS, seed=ctx.seed, style=source.style)
        return preferences(_story_rows(made), format="prompt-pairs")
    return preferences(_rows(source, ctx), **_reading(source))


def read_labelled(sources: Sequence[AnySource], ctx: Context) -> Iterator[tuple[Row, Labelled]]:
    """Yield the answers of a mix for KTO, good and bad, each with the row it came from; a row may have several."""
    for number, source in enumerate(sources):
        yield from _weighted(_labelled(source, ctx), source.weight, seed=ctx.seed + number)


def _labelled(source: AnySource, ctx: Context) -> Iterator[tuple[Row, Labelled]]:
    if isinstance(source, BuiltinSource):
        made = storyworld.preferences(rows=source.rows or STORY_PAIRS, seed=ctx.seed)
        return labelled(_story_rows(made), format="prompt-pairs")
    return labelled(_rows(source, ctx), **_reading(source))


def read_classed(sources: Sequence[AnySource], ctx: Context) -> Iterator[tuple[Row, Classed]]:
    """Yield the texts of a mix for a classifier, each with its label and the row it came from."""
    for number, source in enumerate(sources):
        yield from _weighted(_classed(source, ctx), source.weight, seed=ctx.seed + number)


def _classed(source: AnySource, ctx: Context) -> Iterator[tuple[Row, Classed]]:
    if isinstance(source, BuiltinSource):
        raise DataError(Problem("has no classes to tell apart", source.builtin), hint="data: {path: FILE}")
    return classed(_rows(source, ctx), **_reading(source))


def read_prompts(sources: Sequence[AnySource], ctx: Context) -> Iterator[tuple[Row, Prompt]]:
    """Yield the prompts of a mix for PPO, each with the row it came from; of one source, each once."""
    for number, source in enumerate(sources):
        yield from _weighted(_prompts(source, ctx), source.weight, seed=ctx.seed + number)


def _prompts(source: AnySource, ctx: Context) -> Iterator[tuple[Row, Prompt]]:
    if isinstance(source, BuiltinSource):
        made = storyworld.prompts(rows=source.rows or STORY_PROMPTS, seed=ctx.seed)
        # Not read as rows are, for there are only so many prompts, and `rows` says how many to give.
        asked = (Prompt([said(turn["role"], turn["content"]) for turn in row["prompt"]]) for row in made)
        return ((Row(f"storyworld: row {n}", {}), prompt) for n, prompt in enumerate(asked, 1))
    return prompts(_rows(source, ctx), **_reading(source))


def _story_rows(made: Iterable[storyworld.Row]) -> Iterator[Row]:
    return (Row(f"storyworld: row {number}", dict(row)) for number, row in enumerate(made, 1))


def _reading(source: AnySource) -> dict[str, Any]:
    """Return how the user says that the rows of a source are to be read."""
    return {"columns": source.columns, "format": source.format} if isinstance(source, PathSource | HubSource) else {}


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
