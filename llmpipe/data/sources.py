"""Where rows come from: files, stages, the hub, the built-in corpus; mixed by weight, the same way every time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from llmpipe.context import Context
from llmpipe.data import Problems, Row, noise, said, storyworld, tables
from llmpipe.data.bad_rows import collecting
from llmpipe.data.classes import Classed, classed
from llmpipe.data.formats import Conversation, conversations, documents
from llmpipe.data.hub import revision_of
from llmpipe.data.labelled import Labelled, labelled
from llmpipe.data.preferences import Preference, Prompt, preferences
from llmpipe.data.prompts import prompts
from llmpipe.data.ranked import Ranked, ranked
from llmpipe.data.readers import checked
from llmpipe.data.rows import expand, read_rows
from llmpipe.data.split import split_texts
from llmpipe.data.tables import Table
from llmpipe.errors import DataError, Problem, StageError
from llmpipe.settings import AnySource, BuiltinSource, HubSource, PathSource, StageSource

Item = TypeVar("Item")

Part = Literal["train", "validation", "all"]
PARTS = {"train": "train-*.jsonl", "validation": "validation.jsonl"}
"""The files of a curate stage's data."""

STORIES = 20_000
STORY_CHATS = 4_000
STORY_PAIRS = 2_000
STORY_PROMPTS = 432
"""Every request of the training side once."""


def read_texts(sources: Sequence[AnySource], ctx: Context, *, part: Part = "train") -> Iterator[str]:
    """Yield the documents of a mix for pretraining or tokenizer training; of a curate stage, a part of its split.

    Raises:
        DataError: with every bad row of a source, once all its good rows were yielded.
    """
    for _, text in read_documents(sources, ctx, part=part):
        yield text


def read_documents(sources: Sequence[AnySource], ctx: Context, *, part: Part = "train") -> Iterator[tuple[Row, str]]:
    """Yield the documents of a mix, each with the row it came from."""
    yield from _mixed(sources, ctx, partial(_documents, part=part))


def _documents(source: AnySource, ctx: Context, problems: Problems, *, part: Part) -> Iterator[tuple[Row, str]]:
    if isinstance(source, BuiltinSource):
        made = planted_stories(source, seed=ctx.seed)
        return ((Row(f"storyworld: text {number}", {}), one.text) for number, one in enumerate(made, 1))
    column = (source.columns or {}).get("text") if isinstance(source, PathSource | HubSource) else None
    return documents(_rows(source, ctx, problems, part=part), column=column, problems=problems)


def planted_stories(source: BuiltinSource, *, seed: int) -> Iterator[noise.Planted]:
    """Yield the stories of storyworld with the faults that were asked for."""
    made = storyworld.corpus(stories=source.rows or STORIES, seed=seed, style=source.style)
    return noise.plant(made, share=source.noise, seed=seed)


def read_split(sources: Sequence[AnySource], ctx: Context, *, share: float) -> tuple[Iterator[str], list[str]]:
    """Split the documents of a mix as `split_texts` does; a curate stage has done it for its own, and that counts."""
    split = [source for source in sources if _is_split(source, ctx)]
    others = read_texts([source for source in sources if source not in split], ctx)
    train, held_out = split_texts(others, share=share, mixed=len(sources) > 1)
    held_out += read_texts([source.model_copy(update={"weight": 1.0}) for source in split], ctx, part="validation")
    return chain(read_texts(split, ctx), train), held_out


def read_conversations(sources: Sequence[AnySource], ctx: Context) -> Iterator[tuple[Row, Conversation]]:
    """Yield the conversations of a mix for supervised fine-tuning, each with the row it came from."""
    yield from _mixed(sources, ctx, _conversations)


def _conversations(source: AnySource, ctx: Context, problems: Problems) -> Iterator[tuple[Row, Conversation]]:
    if isinstance(source, BuiltinSource):
        made = storyworld.instructions(rows=source.rows or STORY_CHATS, seed=ctx.seed, style=source.style)
        return conversations(_story_rows(made), format="messages")
    return conversations(_rows(source, ctx, problems), problems=problems, **_reading(source))


def read_preferences(sources: Sequence[AnySource], ctx: Context) -> Iterator[tuple[Row, Preference]]:
    """Yield the preferences of a mix for a reward model, each with the row it came from; a row may have several."""
    yield from _mixed(sources, ctx, _preferences)


def _preferences(source: AnySource, ctx: Context, problems: Problems) -> Iterator[tuple[Row, Preference]]:
    if isinstance(source, BuiltinSource):
        made = storyworld.preferences(rows=source.rows or STORY_PAIRS, seed=ctx.seed, style=source.style)
        return preferences(_story_rows(made), format="prompt-pairs")
    return preferences(_rows(source, ctx, problems), problems=problems, **_reading(source))


def read_ranked(sources: Sequence[AnySource], ctx: Context) -> Iterator[tuple[Row, Ranked]]:
    """Yield what people said of answers, pair by pair, each with the row it came from."""
    yield from _mixed(sources, ctx, _ranked)


def _ranked(source: AnySource, ctx: Context, problems: Problems) -> Iterator[tuple[Row, Ranked]]:
    if isinstance(source, BuiltinSource):
        raise DataError(Problem("is ranked by nobody", source.builtin), hint="rankings: {path: FILE}")
    return ranked(_rows(source, ctx, problems), problems=problems, **_reading(source))


def read_labelled(sources: Sequence[AnySource], ctx: Context) -> Iterator[tuple[Row, Labelled]]:
    """Yield the answers of a mix for KTO, good and bad, each with the row it came from; a row may have several."""
    yield from _mixed(sources, ctx, _labelled)


def _labelled(source: AnySource, ctx: Context, problems: Problems) -> Iterator[tuple[Row, Labelled]]:
    if isinstance(source, BuiltinSource):
        made = storyworld.preferences(rows=source.rows or STORY_PAIRS, seed=ctx.seed)
        return labelled(_story_rows(made), format="prompt-pairs")
    return labelled(_rows(source, ctx, problems), problems=problems, **_reading(source))


def read_classed(sources: Sequence[AnySource], ctx: Context) -> Iterator[tuple[Row, Classed]]:
    """Yield the texts of a mix for a classifier, each with its label and the row it came from."""
    yield from _mixed(sources, ctx, _classed)


def _classed(source: AnySource, ctx: Context, problems: Problems) -> Iterator[tuple[Row, Classed]]:
    if isinstance(source, BuiltinSource):
        raise DataError(Problem("has no classes to tell apart", source.builtin), hint="data: {path: FILE}")
    return classed(_rows(source, ctx, problems), problems=problems, **_reading(source))


def read_prompts(sources: Sequence[AnySource], ctx: Context) -> Iterator[tuple[Row, Prompt]]:
    """Yield the prompts of a mix for PPO, each with the row it came from; of one source, each once."""
    yield from _mixed(sources, ctx, _prompts)


def _prompts(source: AnySource, ctx: Context, problems: Problems) -> Iterator[tuple[Row, Prompt]]:
    if isinstance(source, BuiltinSource):
        made = storyworld.prompts(rows=source.rows or STORY_PROMPTS, seed=ctx.seed)
        # Not read as rows are, for there are only so many prompts, and `rows` says how many to give.
        asked = (Prompt([said(turn["role"], turn["content"]) for turn in row["prompt"]]) for row in made)
        return ((Row(f"storyworld: row {n}", {}), prompt) for n, prompt in enumerate(asked, 1))
    return prompts(_rows(source, ctx, problems), problems=problems, **_reading(source))


def read_asked(source: AnySource, ctx: Context, table: Table[Item]) -> Iterator[tuple[Row, Item]]:
    """Yield what a benchmark task asks, by its one format, each with the row it came from."""
    if isinstance(source, BuiltinSource):
        hint = "the storyworld suite asks for stories; a task needs {path: FILE}"
        raise DataError(Problem("has no questions to ask", source.builtin), hint=hint)
    columns = source.columns if isinstance(source, PathSource | HubSource) else None
    with collecting(source, ctx) as problems:
        rows = _rows(source, ctx, problems)
        (format,) = table.formats
        yield from tables.converted(rows, table, columns=columns, format=format, problems=problems)


def _story_rows(made: Iterable[storyworld.Row]) -> Iterator[Row]:
    return (Row(f"storyworld: row {number}", dict(row)) for number, row in enumerate(made, 1))


def _reading(source: AnySource) -> dict[str, Any]:
    """Return how the user says that the rows of a source are to be read."""
    return {"columns": source.columns, "format": source.format} if isinstance(source, PathSource | HubSource) else {}


def rows_of(sources: Sequence[AnySource], ctx: Context) -> Iterator[Row]:
    """Yield the rows of sources as they are, whatever their columns."""
    for source in sources:
        with collecting(source, ctx) as problems:
            yield from problems.watch(_rows(source, ctx, problems))
            problems.raise_any()


def _rows(source: AnySource, ctx: Context, problems: Problems, *, part: Part = "train") -> Iterator[Row]:
    if isinstance(source, PathSource):
        return read_rows(expand(source.path, base=Path(), format=source.format), problems=problems)
    if isinstance(source, StageSource):
        folder = ctx.run_dir / source.stage
        found = folder / "data" if (folder / "data").is_dir() else folder / "held_out.jsonl"
        if part != "all" and _is_split(source, ctx):
            found /= PARTS[part]
        return read_rows(expand(str(found), base=Path()))
    assert isinstance(source, HubSource)
    return _hub_rows(source, ctx, problems)


def _is_split(source: AnySource, ctx: Context) -> bool:
    """Whether a source is a stage that has set texts aside for validation itself."""
    return isinstance(source, StageSource) and (ctx.run_dir / source.stage / "data" / PARTS["validation"]).is_file()


def _hub_rows(source: HubSource, ctx: Context, problems: Problems) -> Iterator[Row]:
    import datasets

    revision = revision_of(source, ctx, kind="dataset")
    cached = datasets.DownloadConfig(local_files_only=revision is None)
    options = {"split": source.split, "revision": revision, "streaming": source.streaming}
    try:
        for number, row in enumerate(
            datasets.load_dataset(source.hub, source.name, download_config=cached, **options), 1
        ):
            item = checked(dict(row), f"{source.hub}[{source.split}]: row {number}")
            if isinstance(item, Row):
                yield item
            else:
                problems.add(item)
    except Exception as error:  # a dozen classes of three libraries: offline, gated, misspelt, no such split
        message = f"{source.hub} cannot be loaded: {error}".splitlines()[0]
        raise StageError(message, hint="a copy on disk works as {path: FILES}") from error


def _mixed(
    sources: Sequence[AnySource], ctx: Context, read: Callable[[AnySource, Context, Problems], Iterator[Item]]
) -> Iterator[Item]:
    """Yield what is read from each source, as often as its weight says, one source after the other."""
    for number, source in enumerate(sources):
        with collecting(source, ctx) as problems:
            yield from _weighted(read(source, ctx, problems), source.weight, seed=ctx.seed + number)


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
