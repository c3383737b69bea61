"""A SQLite file of ours that several processes may use: its tables, its connections, and what its errors mean.

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
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from llmpipe.errors import DataError, LlmpipeError, TalkError

WAIT_S = 30.0


@dataclass(frozen=True)
class Kind:
    """What a file is: `noun` as errors call it, `application` and `version` as SQLite marks it, its tables.

    `where` says how its folder is named, as in "name another folder in LLMPIPE_HOME".
    """

    noun: str
    application: int
    version: int
    schema: str
    where: str


class Connection(sqlite3.Connection):
    """A connection that can be referred to weakly."""


_INHERITED: list[Connection] = []
"""Connections of a parent process: to use one after a fork, or to close it, could break the file."""


class Database:
    """Connections to a file of a kind: one for each thread, new ones after a fork.

    Raises:
        DataError: the file is broken, of something else, or of a newer llmpipe. It is left as it is.
        TalkError: the file cannot be opened or written, or another process keeps it locked.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path, self.kind = path, kind
        self._process = os.getpid()
        self._local = threading.local()
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(f"{path}.lock", timeout=WAIT_S, mode=0o600):  # two that begin one file
                with suppress(FileExistsError):
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # -wal and -shm get its mode
                with self._explained():
                    self._prepare()
        except Timeout:
            raise _locked(path) from None
        except OSError as error:
            raise TalkError(
                f"cannot keep {kind.noun} in {path}: {error.strerror or error}",
                hint=f"name a folder that can be written {kind.where}",
            ) from error

    def _prepare(self) -> None:
        """Check what the file is; give an empty one its tables."""
        connection = self.connection()
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            ours = connection.execute("PRAGMA application_id").fetchone()[0] == self.kind.application
            if ours and version > self.kind.version:
                raise DataError(
                    f"{self.path} is of a newer llmpipe: its version is {version}, this one knows {self.kind.version}",
                    hint=f"pip install --upgrade llmpipe, or name another folder {self.kind.where}",
                )
            if not ours:
                if version or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise DataError(
                        f"{self.path} is a database, but not {self.kind.noun} of llmpipe",
                        hint=f"name another folder {self.kind.where}; the file was left as it is",
                    )
                connection.execute("PRAGMA journal_mode = WAL")
                marks = f"PRAGMA application_id = {self.kind.application}; PRAGMA user_version = {self.kind.version};"
                connection.executescript(f"BEGIN IMMEDIATE;{self.kind.schema}{marks}COMMIT;")
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
        for pragma in ("synchronous = FULL", "fullfsync = ON", "foreign_keys = ON", "secure_delete = ON"):
            made.execute(f"PRAGMA {pragma}")
        self.prepare(made)
        self._local.known = made
        self._open.add(made)
        return made

    def prepare(self, connection: Connection) -> None:
        """Give a new connection what the tables of this kind need besides; nothing here."""

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
        with self._explained():
            connection = self.connection()
            try:
                connection.execute(begin)
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def checkpoint(self) -> None:
        """Have the log begin anew, so that what was deleted leaves it, too."""
        with self._explained():
            self.connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of SQLite into ones that say what to do."""
        try:
            yield
        except sqlite3.Error as error:
            raise _meaning(error, self.path, self.kind) from error

    def close(self) -> None:
        """Close this process's connections."""
        self._leave_those_of_a_parent()
        for connection in list(self._open):
            connection.close()
        self._local = threading.local()


def _locked(path: Path) -> TalkError:
    return TalkError(
        f"another process has kept {path} locked for {WAIT_S:.0f} s",
        hint="end the other llmpipe or the program that has the file open, and try again",
    )


def _meaning(error: sqlite3.Error, path: Path, kind: Kind) -> LlmpipeError:
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
            f"{path} cannot be written: {error}",
            hint=f"chmod u+w the file and its folder, or name another folder {kind.where}",
        )
    return TalkError(f"{kind.noun} {path} failed: {error}", hint="see that its disk is well, and try again")
