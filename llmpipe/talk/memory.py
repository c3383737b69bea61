"""What was said and is kept: conversations, their messages, and facts, in one file that several processes may use.

    with Memory(default_path()) as memory:
        talk = memory.begin("runs/chat")
        memory.add(talk, {"role": "user", "content": "My cat is called Miso."})
        memory.search("cat")

Messages and facts are found by their words (SQLite's FTS5, ranked by BM25), whatever their accents and their case.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from llmpipe.errors import TalkError
from llmpipe.machine import home
from llmpipe.talk.calls import written_out
from llmpipe.talk.engine import Message
from llmpipe.talk.memory_file import MemoryFile
from llmpipe.talk.records import Conversation, Fact, Stored, Summary
from llmpipe.talk.words import line_of, plain, query_of, text_of


def default_path() -> Path:
    """Return where the memory is: `$LLMPIPE_HOME/memory.sqlite3`, or in `~/.llmpipe`."""
    return home() / "memory.sqlite3"


class Memory:
    """The memory in a file, which is made where there is none. All methods may be called from several threads.

    Raises:
        DataError: the file is broken, of something else, or of a newer llmpipe. It is left as it is.
        TalkError: the file cannot be opened or written, or another process keeps it locked; so does every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MemoryFile(path)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # ---- Conversations ------------------------------------------------------------------------

    def begin(self, model: str) -> int:
        """Begin a conversation and return its id."""
        with self._file.writing() as file:
            return _id(file.execute("INSERT INTO conversation (model, said) VALUES (?, ?)", (plain(model), _now())))

    def add(self, conversation: int, message: Message, *, page: dict[str, Any] | None = None) -> int:
        """Keep a message and return its id; once this returns, it is on the disk. The first question is the title."""
        return self.add_all(conversation, [message | ({_PAGE: page} if page else {})])[0]

    def add_all(self, conversation: int, messages: Sequence[Message]) -> list[int]:
        """Keep messages that belong together, all of them or none; return their ids."""
        with self._writing(conversation) as file:
            return [_add(file, conversation, message) for message in messages]

    def messages(self, conversation: int) -> list[Stored]:
        """Return the messages of a conversation, the oldest first."""
        with self._file.reading() as file:
            _found(file, conversation)
            rows = file.execute(f"SELECT {_STORED} FROM message m WHERE conversation = ? ORDER BY id", (conversation,))
            return [_stored(row) for row in rows]

    def conversation(self, conversation: int) -> Conversation:
        """Return a conversation.

        Raises:
            TalkError: there is none of this id.
        """
        with self._file.reading() as file:
            return _found(file, conversation)

    def conversations(self, limit: int = 50) -> list[Conversation]:
        """Return the conversations in which something was said last, the newest first; all with a limit of -1."""
        with self._file.reading() as file:
            rows = file.execute(f"{_CONVERSATIONS} ORDER BY said DESC, id DESC LIMIT ?", (limit,))
            return [Conversation(*row) for row in rows]

    def rename(self, conversation: int, title: str) -> None:
        """Give a conversation another title."""
        with self._writing(conversation) as file:
            file.execute("UPDATE conversation SET title = ? WHERE id = ?", (line_of(title), conversation))

    def take_back(self, conversation: int, message_id: int) -> None:
        """Delete a message and all after it, and a summary that knows of them."""
        with self._writing(conversation) as file:
            file.execute("DELETE FROM message WHERE conversation = ? AND id >= ?", (conversation, message_id))
            file.execute("DELETE FROM summary WHERE conversation = ? AND until >= ?", (conversation, message_id))

    def delete(self, conversation: int) -> None:
        """Delete a conversation with all that was said in it; nothing of it stays in the file."""
        with self._writing(conversation) as file:
            file.execute("DELETE FROM conversation WHERE id = ?", (conversation,))
        self._file.wipe()

    def delete_all(self) -> int:
        """Delete all conversations and return how many there were; facts stay."""
        with self._file.writing() as file:
            count = file.execute("DELETE FROM conversation").rowcount
        self._file.wipe()
        return count

    # ---- Finding ------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        *,
        limit: int = 10,
        but: int | None = None,
        within: int | None = None,
        before: int | None = None,
    ) -> list[Stored]:
        """Return the messages that have words of a text, the most telling first.

        Not those of the conversation `but`; only those of `within`; only those older than the message `before`.
        """
        with self._file.reading() as file:
            rows = file.execute(
                f"SELECT {_STORED} FROM message_words JOIN message m ON m.id = message_words.rowid "
                "WHERE message_words MATCH :query AND (:but IS NULL OR m.conversation <> :but) "
                "AND (:within IS NULL OR m.conversation = :within) AND (:before IS NULL OR m.id < :before) "
                "ORDER BY message_words.rank, m.id DESC LIMIT :limit",
                {"query": query_of(query), "but": but, "within": within, "before": before, "limit": limit},
            )
            return [_stored(row) for row in rows]

    # ---- Facts --------------------------------------------------------------------------------

    def remember(self, text: str) -> int:
        """Keep a fact and return its id; one that is known gets no second entry.

        Raises:
            TalkError: it is empty.
        """
        text = plain(" ".join(text.split()))
        if not text:
            raise TalkError("there is nothing to remember", hint="/memory remember My cat is called Miso.")
        with self._file.writing() as file:
            if known := file.execute("SELECT id FROM fact WHERE content = ?", (text,)).fetchone():
                return int(known[0])
            return _id(file.execute("INSERT INTO fact (content, said) VALUES (?, ?)", (text, _now())))

    def facts(self, about: str | None = None) -> list[Fact]:
        """Return all facts, the oldest first; with `about` those that have words of it, the most telling first."""
        if about is None:
            select, values = "SELECT id, content, said FROM fact ORDER BY id", ()
        else:
            select = (
                "SELECT f.id, f.content, f.said FROM fact_words JOIN fact f ON f.id = fact_words.rowid "
                "WHERE fact_words MATCH ? ORDER BY fact_words.rank, f.id DESC"
            )
            values = (query_of(about),)  # type: ignore[assignment]
        with self._file.reading() as file:
            return [Fact(*row) for row in file.execute(select, values)]

    def forget(self, fact: int) -> bool:
        """Delete a fact; nothing of it stays in the file. Returns whether there was one of this id."""
        with self._file.writing() as file:
            gone = file.execute("DELETE FROM fact WHERE id = ?", (fact,)).rowcount > 0
        self._file.wipe()
        return gone

    def forget_all(self) -> int:
        """Delete all facts and return how many there were."""
        with self._file.writing() as file:
            count = file.execute("DELETE FROM fact").rowcount
        self._file.wipe()
        return count

    # ---- Summaries, export --------------------------------------------------------------------

    def summary(self, conversation: int) -> Summary | None:
        """Return the summary that was kept of a conversation."""
        with self._file.reading() as file:
            row = file.execute("SELECT until, content FROM summary WHERE conversation = ?", (conversation,)).fetchone()
            return Summary(*row) if row else None

    def keep_summary(self, conversation: int, summary: Summary) -> None:
        """Keep a summary in place of the one before."""
        values = (conversation, summary.until, plain(summary.text))
        with self._writing(conversation) as file:
            file.execute("INSERT OR REPLACE INTO summary (conversation, until, content) VALUES (?, ?, ?)", values)

    def export(self, to: TextIO) -> int:
        """Write JSON lines, facts, then conversations with `messages` as `sft` reads them; return how many."""
        count = 0
        with self._file.reading() as file:
            for count, line in enumerate(_lines(file), start=1):  # noqa: B007
                to.write(json.dumps(line, ensure_ascii=False) + "\n")
        return count

    @contextmanager
    def _writing(self, conversation: int) -> Iterator[sqlite3.Connection]:
        """Write into a conversation that must be there."""
        with self._file.writing() as file:
            _found(file, conversation)
            yield file


_PAGE = "page"
_STORED = "m.id, m.conversation, m.role, m.content, m.said, m.message"
_CONVERSATIONS = """SELECT id, title, model, said,
    (SELECT count(*) FROM message WHERE conversation = conversation.id AND role = 'user') FROM conversation"""


def _found(file: sqlite3.Connection, conversation: int) -> Conversation:
    row = file.execute(f"{_CONVERSATIONS} WHERE id = ?", (conversation,)).fetchone()
    if not row:
        raise TalkError(f"there is no conversation {conversation}", hint="llmpipe memory list shows those there are")
    return Conversation(*row)


def _add(file: sqlite3.Connection, conversation: int, message: Message) -> int:
    text, now, role = text_of(message), _now(), plain(str(message["role"]))
    if role == "user":
        title = line_of(text)
        file.execute("UPDATE conversation SET title = ? WHERE id = ? AND title = ''", (title, conversation))
    file.execute("UPDATE conversation SET said = ? WHERE id = ?", (now, conversation))
    values = (conversation, role, text, plain(json.dumps(message, ensure_ascii=False)), now)
    return _id(
        file.execute("INSERT INTO message (conversation, role, content, message, said) VALUES (?,?,?,?,?)", values)
    )


def _stored(row: tuple[Any, ...]) -> Stored:
    number, conversation, role, content, when, whole = row
    message, page = _parts(whole)
    return Stored(number, conversation, role, content, when, message, page)


def _parts(whole: str) -> tuple[Message, dict[str, Any]]:
    """Return a message as models are told it, and what the page keeps beside it."""
    message: Message = json.loads(whole)
    page = message.pop(_PAGE, {})
    return message, page


def _lines(file: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    for row in file.execute("SELECT id, content, said FROM fact ORDER BY id"):
        yield {"fact": row[1], "when": row[2]}
    for row in file.execute(f"{_CONVERSATIONS} ORDER BY id"):
        talk = asdict(Conversation(*row))
        messages = file.execute("SELECT message FROM message WHERE conversation = ? ORDER BY id", (talk["id"],))
        yield talk | {"messages": written_out([_parts(message)[0] for (message,) in messages])}


def _id(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
