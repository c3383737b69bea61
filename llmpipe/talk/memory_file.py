"""The SQLite file of the memory: its tables, and the index of words beside them."""

from __future__ import annotations

from pathlib import Path

from llmpipe.talk.database import Connection, Database, Kind
from llmpipe.talk.words import spaced

VERSION = 1
APPLICATION = 0x6C6C6D70  # "llmp", by which the file is known for ours

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
"""
KIND = Kind("a memory", APPLICATION, VERSION, _SCHEMA, "in LLMPIPE_HOME")


class MemoryFile(Database):
    """Connections to the memory.

    Raises:
        LlmpipeError: as `Database`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, KIND)

    def prepare(self, connection: Connection) -> None:
        """Give a connection the function by which triggers index texts."""
        connection.create_function("spaced", 1, spaced, deterministic=True)
        connection.execute("PRAGMA trusted_schema = ON")  # some builds have it off, and triggers call `spaced`

    def wipe(self) -> None:
        """Have what was deleted leave the files, too: the index drops its words, the log begins anew."""
        with self.writing() as connection:
            for table in ("message_words", "fact_words"):
                connection.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")
        self.checkpoint()
