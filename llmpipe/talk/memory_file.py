"""The SQLite file of the memory: its tables, its connections, and what its errors mean.

WAL with synchronous=FULL: a write that returned is on the disk, whatever is killed after it, and readers do not wait
for writers. WAL needs a local disk; two machines on one network folder are not for it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from llmpipe.errors import DataError, LlmpipeError, TalkError
from llmpipe.talk.words import spaced

VERSION = 1
APPLICATION = 0x6C6C6D70  # "llmp", by which the file is known for ours
WAIT_S = 30.0

# An index keeps the text as `spaced` gives it, and is told the same text again when a row goes: who changes `spaced`
# raises VERSION and rebuilds the index.
_INDEX = """
CREATE VIRTUAL TABLE {table}_words USING fts5(
    {column}, content='{table}', content_rowid='id', tokenize='unicode61 remove_diacritics 2');
CREATE TRIGGER {table}_added AFTER INSERT ON {table} BEGIN
    INSERT INTO {table}_words (rowid, {column}) VALUES (new.id, spaced(new.{column}));
END;
CREATE TRIGGER {table}_gone AFTER DELETE ON {table} BEGIN
    INSERT INTO {table}_words ({table}_words, rowid, {column}) VALUES ('delete', old.id, spaced(old.{column}));
END;
"""
_SCHEMA = f"""
CREATE TABLE conversation (
    id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL DEFAULT '', model TEXT NOT NULL, said TEXT NOT NULL);
CREATE TABLE message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation INTEGER NOT NULL REFERENCES conversation ON DELETE CASCADE,
    role TEXT NOT NULL, content TEXT NOT NULL, message TEXT NOT NULL, said TEXT NOT NULL);
CREATE INDEX message_of ON message (conversation, id);
CREATE TABLE fact (id INTEGER PRIMARY KEY AUTOINCREMENT, content TEXT NOT NULL, said TEXT NOT NULL);
CREATE TABLE summary (
    conversation INTEGER PRIMARY KEY REFERENCES conversation ON DELETE CASCADE,
    until INTEGER NOT NULL, content TEXT NOT NULL);
{_INDEX.format(table="message", column="content")}
{_INDEX.format(table="fact", column="content")}
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
"""


class Connection(sqlite3.Connection):
    """A connection that can be referred to weakly."""


_INHERITED: list[Connection] = []
"""Connections of a parent process: to use one after a fork, or to close it, could break the file."""


class MemoryFile:
    """Connections to a file: one for each thread, new ones after a fork.

    Raises:
        DataError: the file is broken, of something else, or of a newer llmpipe. It is left as it is.
        TalkError: the file cannot be opened or written, or another process keeps it locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = os.getpid()
        self._local = threading.local()
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(f"{path}.lock", timeout=WAIT_S, mode=0o600):  # two that begin one file
                with suppress(FileExistsError):
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # -wal and -shm get its mode
                with explained(path):
                    self._prepare()
        except Timeout:
            raise _locked(path) from None
        except OSError as error:
            raise TalkError(
                f"cannot keep a memory in {path}: {error.strerror or error}",
                hint="name a folder that can be written in LLMPIPE_HOME",
            ) from error

    def _prepare(self) -> None:
        """Check what the file is; give an empty one its tables."""
        connection = self.connection()
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            ours = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION
            if ours and version > VERSION:
                raise DataError(
                    f"{self.path} is of a newer llmpipe: its version is {version}, this one knows {VERSION}",
                    hint="pip install --upgrade llmpipe, or name another folder in LLMPIPE_HOME",
                )
            if not ours:
                if version or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise DataError(
                        f"{self.path} is a database, but not of llmpipe",
                        hint="name another folder in LLMPIPE_HOME; the file was left as it is",
                    )
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
        except BaseException:
            self.close()
            raise

    def connection(self) -> Connection:
        """Return this thread's connection."""
        self._leave_those_of_a_parent()
        known: Connection | None = getattr(self._local, "known", None)
        if known:
            return known
        made = sqlite3.connect(
            self.path.absolute().as_uri() + "?mode=rw",
            uri=True,
            timeout=WAIT_S,
            isolation_level=None,
            check_same_thread=False,  # so that close() can
            factory=Connection,
        )
        made.create_function("spaced", 1, spaced, deterministic=True)
        for pragma in ("synchronous = FULL", "fullfsync = ON", "foreign_keys = ON", "secure_delete = ON"):
            made.execute(f"PRAGMA {pragma}")
        made.execute("PRAGMA trusted_schema = ON")  # some builds have it off, and triggers call `spaced`
        self._local.known = made
        self._open.add(made)
        return made

    def _leave_those_of_a_parent(self) -> None:
        if self._process != os.getpid():
            _INHERITED.extend(self._open)
            self._process, self._local, self._open = os.getpid(), threading.local(), weakref.WeakSet()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection that sees the file as it is now, to the end of the block."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a connection whose writes are on the disk after the block, or none of them where it raised."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        with explained(self.path):
            connection = self.connection()
            try:
                connection.execute(begin)
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def wipe(self) -> None:
        """Have what was deleted leave the files, too: the index drops its words, the log begins anew."""
        with self.writing() as connection:
            for table in ("message_words", "fact_words"):
                connection.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")
        with explained(self.path):
            self.connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close this process's connections."""
        self._leave_those_of_a_parent()
        for connection in list(self._open):
            connection.close()
        self._local = threading.local()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into ones that say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise _meaning(error, path) from error


def _locked(path: Path) -> TalkError:
    return TalkError(
        f"another process has kept {path} locked for {WAIT_S:.0f} s",
        hint="end the other llmpipe or the program that has the file open, and try again",
    )


def _meaning(error: sqlite3.Error, path: Path) -> LlmpipeError:
    """Say what an error of SQLite means; the low byte of its code is the kind."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DataError(
            f"{path} is broken: {error}",
            hint="nothing was overwritten; move it away to begin anew, "
            f"or save what can be read: sqlite3 {path} .recover | sqlite3 saved.sqlite3",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return _locked(path)
    if code == sqlite3.SQLITE_FULL:
        return TalkError(f"the disk of {path} is full; this was not kept", hint="make room, and try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return TalkError(
            f"{path} cannot be written: {error}", hint="chmod u+w the file and its folder, or name another LLMPIPE_HOME"
        )
    return TalkError(f"the memory {path} failed: {error}", hint="see that its disk is well, and try again")
