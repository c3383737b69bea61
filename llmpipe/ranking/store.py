"""The store: one SQLite file with prompts, answers, rankings and thumbs, which several processes may use.

with Store(store_path("runs/mine")) as store:
    task = store.add_task("rank", asked, answers, round_id=1)
    store.keep(Ranking(task, "ann", "overall", "ranked", (2, 1)))

What was kept is on the disk before the call returns.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from llmpipe.errors import UsageError
from llmpipe.ranking.records import Answer, Asked, Ranking, Source, Task, Thumb, key_of
from llmpipe.talk.database import Database, Kind
from llmpipe.talk.words import plain

FILE = "rankings.sqlite3"
_SCHEMA = """
CREATE TABLE round (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, settings TEXT NOT NULL, used TEXT NOT NULL);
CREATE TABLE task (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, source TEXT NOT NULL,
    round INTEGER REFERENCES round, place INTEGER, messages TEXT NOT NULL, text TEXT, answers TEXT NOT NULL, gold TEXT);
CREATE INDEX task_of ON task (round, place);
CREATE TABLE ranking (
    id INTEGER PRIMARY KEY AUTOINCREMENT, task INTEGER NOT NULL REFERENCES task ON DELETE CASCADE,
    annotator TEXT NOT NULL, criterion TEXT NOT NULL, verdict TEXT NOT NULL, ranks TEXT, comment TEXT NOT NULL,
    said TEXT NOT NULL, seconds REAL, UNIQUE (task, annotator, criterion));
CREATE TABLE thumb (
    id INTEGER PRIMARY KEY AUTOINCREMENT, task INTEGER NOT NULL REFERENCES task ON DELETE CASCADE,
    annotator TEXT NOT NULL, good INTEGER NOT NULL, said TEXT NOT NULL, UNIQUE (task, annotator));
"""
KIND = Kind("rankings", 0x6C6C6D72, 1, _SCHEMA, "for the run, or in LLMPIPE_HOME")


def store_path(run: str | Path) -> Path:
    """Return the file of a run's rankings; one that ends in .sqlite3 is that file itself.

    Raises:
        UsageError: it is neither.
    """
    path = Path(run)
    if path.suffix == ".sqlite3":
        return path
    if not (path / "recipe.yaml").is_file():
        raise UsageError(f"{run} is no run directory", hint="llmpipe rank runs/NAME, or a FILE.sqlite3 of rankings")
    return path / FILE


def store_of(model: str, *, beside: Path) -> Path:
    """Return where what is said of a model is kept: with its run, else in the folder `beside`."""
    for name in (model, model.rpartition(":")[0]):
        if name and (Path(name) / "recipe.yaml").is_file():
            return Path(name) / FILE
    return beside / FILE


class Store:
    """The store in a file, which is made where there is none. All methods may be called from several threads.

    Raises:
        DataError: the file is broken, of something else, or of a newer llmpipe. It is left as it is.
        TalkError: the file cannot be opened or written, or another process keeps it locked; so does every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = Database(path, KIND)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # ---- Rounds and their tasks -----------------------------------------------------------------

    def begin_round(self, key: str, settings: Mapping[str, Any]) -> int:
        """Begin a round, or go on with the one of this key under these settings; returns its id."""
        with self._file.writing() as file:
            file.execute(
                "INSERT INTO round (key, settings, used) VALUES (?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET settings = excluded.settings, used = excluded.used",
                (key, _json(settings), now()),
            )
            return int(file.execute("SELECT id FROM round WHERE key = ?", (key,)).fetchone()[0])

    def newest_round(self) -> tuple[int, dict[str, Any]] | None:
        """Return the round that was ranked last, and its settings."""
        with self._file.reading() as file:
            row = file.execute("SELECT id, settings FROM round ORDER BY used DESC, id DESC LIMIT 1").fetchone()
        return (int(row[0]), json.loads(row[1])) if row else None

    def add_task(
        self,
        source: Source,
        asked: Asked,
        answers: Sequence[Answer],
        *,
        round_id: int | None = None,
        place: int | None = None,
        gold: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    ) -> int:
        """Keep a prompt with its answers, once, and return its id."""
        said = _said(answers)
        key = key_of(source, round_id, place, asked.key, said)
        values = (key, source, round_id, place, _json(list(asked.messages)), asked.text and plain(asked.text))
        with self._file.writing() as file:
            file.execute(
                "INSERT INTO task (key, source, round, place, messages, text, answers, gold) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
                (*values, _json(said), None if gold is None else _json(gold)),
            )
            return int(file.execute("SELECT id FROM task WHERE key = ?", (key,)).fetchone()[0])

    def tasks(self, round_id: int | None = None) -> list[Task]:
        """Return the tasks of a round by their places, or all there are."""
        where, values = ("WHERE round = ? ", (round_id,)) if round_id is not None else ("", ())
        with self._file.reading() as file:
            return [_task(row) for row in file.execute(f"{_TASKS} {where}ORDER BY round, source, place, id", values)]

    def places(self, round_id: int) -> set[int]:
        """Return the places of a round's prompts that have been answered."""
        with self._file.reading() as file:
            rows = file.execute("SELECT place FROM task WHERE round = ? AND source = 'rank'", (round_id,))
            return {int(row[0]) for row in rows}

    # ---- What people say --------------------------------------------------------------------------

    def keep(self, ranking: Ranking) -> None:
        """Keep a ranking in place of one that its annotator gave before."""
        ranks = None if ranking.ranks is None else _json(ranking.ranks)
        said = (ranking.verdict, ranks, plain(ranking.comment), ranking.when or now(), ranking.seconds)
        with self._file.writing() as file:
            file.execute(
                "INSERT OR REPLACE INTO ranking (task, annotator, criterion, verdict, ranks, comment, said, seconds) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (ranking.task, ranking.annotator, ranking.criterion, *said),
            )

    def take_back(self, annotator: str, tasks: Iterable[int]) -> Ranking | None:
        """Delete an annotator's newest ranking of these tasks, and return it."""
        among = set(tasks)
        with self._file.writing() as file:
            rows = file.execute(f"{_RANKINGS} WHERE annotator = ? ORDER BY id DESC", (annotator,))
            last = next((one for one in map(_ranking, rows) if one.task in among), None)
            if last is not None:
                file.execute(
                    "DELETE FROM ranking WHERE task = ? AND annotator = ? AND criterion = ?",
                    (last.task, annotator, last.criterion),
                )
        return last

    def rankings(self, annotator: str | None = None) -> list[Ranking]:
        """Return all rankings, or those of an annotator, the oldest first."""
        where, values = ("WHERE annotator = ? ", (annotator,)) if annotator is not None else ("", ())
        with self._file.reading() as file:
            return [_ranking(row) for row in file.execute(f"{_RANKINGS} {where}ORDER BY id", values)]

    def keep_thumb(self, thumb: Thumb) -> None:
        """Keep a thumb in place of one that was given before."""
        with self._file.writing() as file:
            file.execute(
                "INSERT OR REPLACE INTO thumb (task, annotator, good, said) VALUES (?, ?, ?, ?)",
                (thumb.task, thumb.annotator, int(thumb.is_good), thumb.when or now()),
            )

    def thumb(self, source: Source, asked: Asked, answers: Sequence[Answer], annotator: str) -> bool | None:
        """Return an annotator's thumb for a task that is in no round; None where there is none."""
        key = key_of(source, None, None, asked.key, _said(answers))
        with self._file.reading() as file:
            row = file.execute(
                "SELECT good FROM thumb JOIN task ON task.id = thumb.task WHERE key = ? AND annotator = ?",
                (key, annotator),
            ).fetchone()
        return None if row is None else bool(row[0])

    def thumbs(self) -> list[Thumb]:
        """Return all thumbs, the oldest first."""
        with self._file.reading() as file:
            rows = file.execute("SELECT task, annotator, good, said FROM thumb ORDER BY id")
            return [Thumb(row[0], row[1], bool(row[2]), row[3]) for row in rows]


_TASKS = "SELECT id, source, messages, text, answers, gold FROM task"
_RANKINGS = "SELECT task, annotator, criterion, verdict, ranks, comment, said, seconds FROM ranking"


def _said(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    return [{"text": one.text, "models": list(one.models)} for one in answers]


def _task(row: sqlite3.Row | tuple[Any, ...]) -> Task:
    number, source, messages, text, answers, gold = row
    given = tuple(Answer(one["text"], tuple(one["models"])) for one in json.loads(answers))
    known = None if gold is None else {name: [(a, b) for a, b in pairs] for name, pairs in json.loads(gold).items()}
    return Task(number, source, Asked(json.loads(messages), text), given, known)


def _ranking(row: tuple[Any, ...]) -> Ranking:
    task, annotator, criterion, verdict, ranks, comment, when, seconds = row
    places = None if ranks is None else tuple(json.loads(ranks))
    return Ranking(task, annotator, criterion, verdict, places, comment, when, seconds)


def _json(content: Any) -> str:
    return plain(json.dumps(content, ensure_ascii=False))


def now() -> str:
    """Return the time as ISO 8601 has it, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
