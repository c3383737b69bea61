"""What `on_bad_rows:` asks for: bad rows stop a stage, or are left out, counted, and kept beside the stage's output.

left_out.json in the stage's folder has the counts by source. It stays when a stage is resumed, which does not read its
data again, and goes into the manifest from there. bad_rows.jsonl has the rows themselves, for `quarantine`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmpipe.artifact import read_json, write_json
from llmpipe.context import Context
from llmpipe.data import BadRow, Problems, Row
from llmpipe.data.rows import shown
from llmpipe.errors import DataError, Problem
from llmpipe.settings import AnySource, HubSource, PathSource

COUNTS = "left_out.json"
QUARANTINE = "bad_rows.jsonl"
NAMED = 3


class LeftOut(Problems):
    """Bad rows that are left out: counted, the first `NAMED` said, all of them written to `quarantine` if there is one.

    Raises:
        DataError: by `raise_any`, when more than half of the rows are bad, or for what is wrong with no row but with
            the recipe.
    """

    def __init__(self, source: str, *, quarantine: Path | None) -> None:
        super().__init__(limit=NAMED)
        self.source, self.quarantine = source, quarantine
        self.rows = self.bad = 0
        self.of_the_recipe: list[Problem] = []
        self.hint: str | None = None

    def add(self, *problems: Problem) -> None:
        """Count the rows that a reader could not make out."""
        for problem in problems:
            if problem.where is None:
                self.of_the_recipe.append(problem)
            elif not (isinstance(problem, BadRow) and problem.again):
                self.rows += 1
                self._leave_out(problem.where, [problem.message], problem.raw if isinstance(problem, BadRow) else None)

    def reject(self, row: Row, wrong: Iterable[str]) -> None:
        """Count a row that no format makes sense of."""
        self._leave_out(row.where, list(wrong), row.value)

    def unfit(self, row: Row, error: DataError) -> None:
        """Leave a row out by which no format can be told; the next one may say it."""
        self.hint = error.hint
        self.reject(row, [problem.message for problem in error.problems])

    def _leave_out(self, where: str, wrong: list[str], raw: object) -> None:
        self.bad += 1
        super().add(*(Problem(what, where) for what in wrong[:1]))
        if self.quarantine:
            line = json.dumps({"where": where, "wrong": wrong, "row": raw}, ensure_ascii=True, default=str)
            with self.quarantine.open("a", encoding="utf-8", newline="\n") as file:
                file.write(line + "\n")

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Count the rows that were read."""
        for row in rows:
            self.rows += 1
            yield row

    def raise_any(self) -> None:
        """Refuse to go on when most rows are bad: they are not the odd one out then, but another kind of data."""
        if self.of_the_recipe:
            raise DataError(self.of_the_recipe)
        if self.bad * 2 > self.rows:
            most = Problem(f"{self.bad:,} of {self.rows:,} rows are bad; more than half are not left out", self.source)
            raise DataError([most, *self.listed], hint=self.hint)


@contextmanager
def collecting(source: AnySource, ctx: Context) -> Iterator[Problems]:
    """Give what takes note of a source's bad rows, and report on what was left out once the source was read.

    A stage may read a source twice, or only its beginning: its rows are kept, counted and spoken of the first time.
    """
    how = source.on_bad_rows if isinstance(source, PathSource | HubSource) else "error"
    name = _name(source)
    first = ctx.rank == 0 and name not in (read_json(ctx.dir / COUNTS) or {})
    keep = how == "quarantine" and first
    problems = LeftOut(name, quarantine=ctx.dir / QUARANTINE if keep else None) if how != "error" else Problems()
    try:
        yield problems
    except GeneratorExit:  # the stage has read enough
        if first:
            _report(problems, name, ctx)
        raise
    if first:
        _report(problems, name, ctx)


def _name(source: AnySource) -> str:
    if isinstance(source, PathSource):
        return shown(Path(source.path))
    return f"{source.hub}[{source.split}]" if isinstance(source, HubSource) else ""


def _report(problems: Problems, name: str, ctx: Context) -> None:
    """Say what was left out, and write the counts down."""
    counts: dict[str, Any] = {}
    if isinstance(problems, LeftOut) and problems.bad:
        counts = {"rows": problems.rows, "bad_rows": problems.bad}
        kept = f", kept in {QUARANTINE}" if problems.quarantine else ""
        ctx.say(f"{name}: {problems.bad:,} of {problems.rows:,} rows are bad and left out{kept}; the first:")
        for problem in problems.listed:
            ctx.say(f"  {problem}")
    if problems.passed_over:
        counts["passed_over"] = dict(problems.passed_over)
        listed = ", ".join(f"{count:,} {why}" for why, count in problems.passed_over.most_common())
        ctx.say(f"{name}: {problems.passed_over.total():,} files are passed over: {listed}")
    if counts:
        write_json(ctx.dir / COUNTS, (read_json(ctx.dir / COUNTS) or {}) | {name: counts})


def metrics(folder: Path) -> dict[str, int]:
    """Return what a stage left out, for its manifest: nothing where nothing was."""
    found: Mapping[str, Any] = read_json(folder / COUNTS) or {}
    bad = sum(counts.get("bad_rows", 0) for counts in found.values())
    passed = sum(sum(counts.get("passed_over", {}).values()) for counts in found.values())
    return {key: count for key, count in {"bad_rows": bad, "passed_over_files": passed}.items() if count}
