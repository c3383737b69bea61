"""How a plan's data files would be read: the format of each, by its first row, and the columns of that row.

Only the beginning of a file is looked at. A document has to be read whole, and so has a list in a .json file: those,
and large lists, are known by their suffix alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpipe import stages
from llmpipe.data import Problems, Row, safety
from llmpipe.data.benchmarks import table_of
from llmpipe.data.classes import CLASSED
from llmpipe.data.formats import CONVERSATIONS, documents
from llmpipe.data.labelled import LABELLED
from llmpipe.data.preferences import PREFERENCES
from llmpipe.data.prompts import PROMPTS
from llmpipe.data.ranked import RANKED
from llmpipe.data.readers import code
from llmpipe.data.rows import BINARY, expand, read_rows, shown, suffix_of
from llmpipe.data.tables import Table, format_of
from llmpipe.edges import input_fields, key_path, sources_of
from llmpipe.errors import LlmpipeError
from llmpipe.plan import Step
from llmpipe.settings import PathSource, StageSettings
from llmpipe.tasks import Prompted

MOST_FILES = 10
"""Of each source; a folder may hold a hundred thousand."""
MOST_BYTES = 50 * 2**20
DOCUMENTS = (BINARY - {".parquet"}) | {".txt", ".md"}

TABLES: dict[str, Table[Any]] = {
    "sft": CONVERSATIONS,
    "lora": CONVERSATIONS,
    "reward": Table(PREFERENCES),
    "dpo": Table(PREFERENCES),
    "kto": Table(LABELLED),
    "classify": Table(CLASSED),
    **dict.fromkeys(("rlhf-ppo", "rloo", "grpo"), Table(PROMPTS)),
    "eval.questions": Table(PROMPTS),
    "eval.rankings": Table(RANKED),
    "eval.refusals": safety.REFUSALS,
    "eval.pronouns": safety.QUESTIONS,
}
"""The formats that a kind of stage reads its rows by, or one field of it; what is not here is read as texts."""


def previews(steps: Sequence[Step]) -> Iterator[dict[str, Any]]:
    """Yield for each data file of the steps that would run: stage, file, format, columns, and `problem` if it has one.

    The last one of a source that has more files says how many in `more`.
    """
    for step in steps:
        settings = stages.load(step.record.kind).Settings.model_validate(step.record.settings)
        for name, accepts in input_fields(settings):
            for source in sources_of(settings, name) if step.action not in ("skip", "wait") else ():
                if isinstance(source, PathSource) and not accepts.is_folder:
                    yield from _of_source(step, source, _table(settings, name))


def _table(settings: StageSettings, field: str) -> Table[Any] | None:
    """Return the formats that a field's rows are read by; None where it takes texts."""
    if field.startswith("tasks."):
        _, number, _ = key_path(field)
        task = settings.tasks[number]  # type: ignore[attr-defined]  # only eval has such a field
        return table_of(task) if isinstance(task, Prompted) else None
    return TABLES.get(f"{settings.kind}.{field}", TABLES.get(settings.kind))


def _of_source(step: Step, source: PathSource, table: Table[Any] | None) -> Iterator[dict[str, Any]]:
    files = expand(source.path, base=Path(), format=source.format)
    for number, file in enumerate(files[:MOST_FILES], 1):
        more = len(files) - MOST_FILES if number == MOST_FILES else 0
        yield {"stage": step.name, "file": shown(file), **_of_file(file, table, source), "more": more}


def _of_file(file: Path, table: Table[Any] | None, source: PathSource) -> dict[str, Any]:
    """Tell how a file would be read, or what is wrong with its first row."""
    suffix = suffix_of(file)
    if suffix in code.LANGUAGES:
        return {"format": "code", "columns": ["text", "language"], "problem": None}
    if suffix in DOCUMENTS:
        return {"format": "text", "columns": ["text"], "problem": None}
    if suffix == ".json" and file.stat().st_size > MOST_BYTES:
        return {"format": source.format, "columns": None, "problem": None}
    noted, row, found = Problems(1), None, None
    try:
        row = next(read_rows([file], problems=noted), None)
        problem = None
        if row is None:
            noted.raise_any()
        else:
            found = _format(row, table, source)
    except LlmpipeError as error:
        problem = error.problems[0].message.partition("\n")[0]
    return {"format": found, "columns": list(row.value) if row else None, "problem": problem}


def _format(row: Row, table: Table[Any] | None, source: PathSource) -> str:
    """Return the name of the format that a row is read by."""
    if table is None:
        column = (source.columns or {}).get("text")
        list(documents([row], column=column))
        return "text"
    return source.format or format_of(row, table, source.columns or {})


def rows_of(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    """Lay the previews out for people: stage, file, format, columns; files of one kind after each other in one line."""
    before: Any = None
    for one in found:
        seen = (one["stage"], one["format"], one["columns"], one["problem"], Path(one["file"]).parent)
        columns = ", ".join(one["columns"] or ())
        if one["problem"] or seen != before:
            yield one["stage"], one["file"], one["format"] or "?", one["problem"] or columns
        before = seen
        if one["more"]:
            yield one["stage"], f"and {one['more']:,} more files", "", ""
