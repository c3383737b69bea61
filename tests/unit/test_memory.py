"""The memory: what is acknowledged is kept, what is deleted is gone, what was said is found, errors say what to do."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sqlite3
import stat
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmpipe.errors import DataError, LlmpipeError, TalkError
from llmpipe.talk import memory_file
from llmpipe.talk.memory import Memory, default_path
from llmpipe.talk.records import Summary
from llmpipe.talk.words import excerpt, query_of
from tests.unit.killed import NAMES, outcome


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "memory.sqlite3"


@pytest.fixture
def memory(path: Path) -> Iterator[Memory]:
    with Memory(path) as opened:
        yield opened


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def contents(memory: Memory, query: str, **how: int) -> list[str]:
    return [one.content for one in memory.search(query, **how)]


# ---- Conversations ----------------------------------------------------------------------------


def test_what_is_kept_is_there_when_it_is_opened_again(path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image_url"}, {"text": "a cat"}]}
    with Memory(path) as memory:
        talk = memory.begin("runs/x")
        numbers = [memory.add(talk, message) for message in (user("Hello."), call, parts)]
    with Memory(path) as memory:
        kept = memory.messages(talk)
        assert [one.id for one in kept] == numbers
        assert [one.message for one in kept] == [user("Hello."), call, parts]
        assert [(one.role, one.content) for one in kept] == [
            ("user", "Hello."), ("assistant", ""), ("user", "Look:\na cat"),
        ]  # fmt: skip
        (told,) = memory.conversations()
        assert (told.id, told.title, told.model, told.turns) == (talk, "Hello.", "runs/x", 2)
        assert told == memory.conversation(talk) and told.when == kept[-1].when and told.when.endswith("Z")


def test_the_conversation_of_the_newest_message_comes_first(memory: Memory) -> None:
    first, second, third = (memory.begin(name) for name in "abc")
    memory._file.connection().execute("UPDATE conversation SET said = '2020-01-0' || id")
    memory.add(second, user("Again."))
    assert [one.id for one in memory.conversations()] == [second, third, first]
    assert [one.id for one in memory.conversations(limit=1)] == [second]
    assert len(memory.conversations(limit=-1)) == 3


def test_a_title_is_the_first_question_until_it_is_renamed(memory: Memory) -> None:
    talk = memory.begin("x")
    memory.add(talk, {"role": "assistant", "content": "Welcome."})
    memory.add(talk, user("How\n do " + "very " * 20 + "long titles look?"))
    memory.add(talk, user("And now?"))
    assert memory.conversation(talk).title == "How do very very very very very very very very very very ve…"
    memory.rename(talk, "Titles")
    memory.add(talk, user("Still?"))
    assert memory.conversation(talk).title == "Titles"


def test_text_that_utf_8_does_not_have_is_kept_without_it(memory: Memory) -> None:
    talk = memory.begin("x")
    memory.add(talk, user("broken \ud800 and \x00 zero"))
    (kept,) = memory.messages(talk)
    assert kept.content == kept.message["content"] == "broken ? and \x00 zero"


def test_taking_back_takes_all_after_it(memory: Memory) -> None:
    talk, other = memory.begin("x"), memory.begin("x")
    numbers = [memory.add(talk, user(f"number {number}")) for number in range(4)]
    memory.add(other, user("of another"))
    memory.keep_summary(talk, Summary(numbers[1], "Numbers."))
    memory.take_back(talk, numbers[2])
    assert [one.id for one in memory.messages(talk)] == numbers[:2]
    assert memory.summary(talk) == Summary(numbers[1], "Numbers.")
    memory.take_back(talk, numbers[1])
    assert memory.summary(talk) is None and contents(memory, "number") == ["number 0"]
    assert contents(memory, "another") == ["of another"]


@pytest.mark.parametrize("act", ["add", "messages", "delete", "rename", "take_back", "keep_summary", "conversation"])
def test_a_conversation_that_is_not_there(memory: Memory, act: str) -> None:
    more = {"add": [user("x")], "rename": ["x"], "take_back": [1], "keep_summary": [Summary(1, "x")]}
    with pytest.raises(TalkError, match="there is no conversation 7") as refused:
        getattr(memory, act)(7, *more.get(act, []))
    assert refused.value.hint == "llmpipe memory list shows those there are"


# ---- Facts ------------------------------------------------------------------------------------


def test_facts(memory: Memory) -> None:
    first, second = memory.remember("  The cat is\ncalled Miso. "), memory.remember("Answers in French.")
    assert memory.remember("The cat is called Miso.") == first
    assert [(fact.id, fact.text) for fact in memory.facts()] == [
        (first, "The cat is called Miso."), (second, "Answers in French."),
    ]  # fmt: skip
    assert [fact.id for fact in memory.facts(about="in which language are answers?")] == [second]
    assert memory.forget(first) and not memory.forget(first)
    assert [fact.id for fact in memory.facts()] == [second] and memory.facts(about="cat") == []
    assert memory.remember("New.") > second and memory.forget_all() == 2
    with pytest.raises(TalkError, match="there is nothing to remember"):
        memory.remember(" \n")


# ---- Finding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("cat", True), ("CAT'S name?", True), ("cafe", True), ("Café", True), ("kafe cat dog", True), ("straße", True),
        ("小白", True), ("猫", True), ("我的猫叫什么名字", True), ("ねこ", True), ("ミソ", True), ("ﾐｿ", True),
        ("白小", False), ("dog", False), ("ca", False), ("", False), ("?!", False), ("\x00", False),
    ],
)  # fmt: skip
def test_words_are_found_whatever_their_case_accents_and_script(memory: Memory, query: str, found: bool) -> None:
    memory.add(memory.begin("x"), user("My cat sits in the cafe\u0301 of Straße 5, 我的猫叫小白, ねこのミソ。"))
    assert bool(memory.search(query)) == found


@pytest.mark.parametrize("query", ['"', "a OR (b", "NEAR(", "x:y *", "^cat -dog", "a" * 5000, "' ; DROP TABLE message"])
def test_nothing_in_a_query_is_syntax(memory: Memory, query: str) -> None:
    memory.add(memory.begin("x"), user(query))
    assert contents(memory, query) == ([query] if any(char.isalnum() for char in query) else [])


def test_a_long_text_is_a_query_of_its_first_and_last_words() -> None:
    query = query_of(" ".join(f"w{number}" for number in range(10_000)))
    assert query.count(" OR ") == 99 and query.startswith('"w0" OR "w1" ') and query.endswith('OR "w9999"')


def test_the_most_telling_message_comes_first(memory: Memory) -> None:
    one, two = memory.begin("x"), memory.begin("x")
    for number in range(20):
        memory.add(one, user(f"what is the weather {number}?"))
    telling = memory.add(one, user("the code of my locker is 4711"))
    other = memory.add(two, user("a locker of another"))
    found = memory.search("what is the code of my locker?")
    assert [message.id for message in found[:2]] == [telling, other] and len(found) == 10
    assert [message.id for message in memory.search("locker", but=one)] == [other]
    assert [message.id for message in memory.search("locker", within=one)] == [telling]
    assert memory.search("locker", within=one, before=telling) == []
    assert len(memory.search("weather", limit=3)) == 3


@pytest.mark.parametrize(
    ("text", "query", "shown"),
    [
        ("A cat.", "cat", "A cat."),
        ("word " * 9 + "the Cat\nsleeps" + " word" * 9, "dog cat", "…rd the Cat sleeps word word…"),
        ("word " * 9, "cat", "word word word word word word…"),
    ],
)
def test_an_excerpt_shows_what_was_looked_for(text: str, query: str, shown: str) -> None:
    assert excerpt(text, query, chars=30) == shown


# ---- Deleting and taking out ------------------------------------------------------------------


def test_what_is_deleted_leaves_the_files(path: Path) -> None:
    with Memory(path) as memory:
        secret, other = memory.begin("x"), memory.begin("x")
        memory.add(secret, user("xylophonist " * 2000))
        memory.add(other, user("something else"))
        memory.keep_summary(secret, Summary(1, "An xylophonist."))
        fact = memory.remember("The xylophonist is kept.")
        assert b"xylophonist" in path.read_bytes() + path.with_name(path.name + "-wal").read_bytes()
        memory.delete(secret)
        memory.forget(fact)
        for file in path.parent.iterdir():
            assert b"xylophon" not in file.read_bytes(), file
        assert memory.search("xylophonist") == [] and memory.summary(secret) is None
        assert [one.id for one in memory.conversations()] == [other]
        assert memory.delete_all() == 1 and memory.conversations() == [] and memory.search("else") == []


def test_what_the_page_keeps_of_a_message_is_told_to_no_model(memory: Memory) -> None:
    talk = memory.begin("x")
    memory.add(talk, user("Hi."), page={"files": ["a.md"]})
    memory.add(talk, user("Hi again."))
    first, second = memory.messages(talk)
    assert (first.message, first.page) == (user("Hi."), {"files": ["a.md"]})
    assert (second.message, second.page) == (user("Hi again."), {})
    memory.export(to := io.StringIO())
    assert json.loads(to.getvalue())["messages"] == [user("Hi."), user("Hi again.")]


def test_an_export_is_rows_to_learn_from(memory: Memory) -> None:
    talk = memory.begin("x")
    memory.add(talk, user("Hällo."))
    memory.add(talk, {"role": "assistant", "content": "Hi."})
    memory.remember("A fact.")
    to = io.StringIO()
    assert memory.export(to) == 2
    fact, row = map(json.loads, to.getvalue().splitlines())
    assert fact["fact"] == "A fact." and row["title"] == "Hällo." and "Hällo" in to.getvalue()
    assert row["messages"] == [user("Hällo."), {"role": "assistant", "content": "Hi."}]


# ---- Processes, threads, kills ----------------------------------------------------------------


def test_nothing_acknowledged_is_lost_when_writers_are_killed(path: Path) -> None:
    """The whole of it, 2 processes × 1,000 writes: python benchmarks/memory.py."""
    told = outcome(path, writes=20, kills=2, seed=5)
    assert (told.acknowledged, told.lost, told.out_of_order, told.integrity) == (40, 0, 0, "ok")
    assert told.found == len(NAMES) and told.kills >= 2


def _begin_and_add(path: Path, gate: threading.Barrier, name: str) -> None:
    gate.wait()
    with Memory(path) as memory:
        memory.add(memory.begin(name), user(name))


def test_processes_may_begin_one_file_at_once(path: Path) -> None:
    here = multiprocessing.get_context("fork")
    gate = here.Barrier(4)
    workers = [here.Process(target=_begin_and_add, args=(path, gate, f"worker {number}")) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    with Memory(path) as memory:
        assert sorted(one.title for one in memory.conversations()) == [f"worker {number}" for number in range(4)]


def test_threads_have_connections_of_their_own(memory: Memory) -> None:
    talk = memory.begin("x")
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda number: memory.add(talk, user(f"number {number}")), range(40)))
        seen = set(pool.map(lambda _: id(memory._file.connection()), range(40)))
    assert sorted(numbers) == [one.id for one in memory.messages(talk)] and len(set(numbers)) == 40
    assert id(memory._file.connection()) not in seen


def test_a_fork_leaves_its_parents_connections_alone(memory: Memory) -> None:
    talk = memory.begin("x")
    inherited = memory._file.connection()
    child = os.fork()
    if child == 0:
        try:
            assert memory._file.connection() is not inherited
            memory.add(talk, user("of the child"))
            memory.close()
            inherited.execute("SELECT 1")  # close() left it open
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    memory.add(talk, user("of the parent"))
    assert [one.content for one in memory.messages(talk)] == ["of the child", "of the parent"]
    assert memory._file.connection() is inherited


def test_a_write_that_fails_leaves_nothing(memory: Memory) -> None:
    talk = memory.begin("x")
    with pytest.raises(TypeError):
        memory.add(talk, {"role": "user", "content": "x", "extra": object()})
    assert memory.messages(talk) == [] and memory.conversation(talk).title == ""
    assert memory.add(talk, user("next")) > 0


# ---- Files and errors -------------------------------------------------------------------------


def test_only_its_owner_reads_it(path: Path) -> None:
    mask = os.umask(0)
    try:
        with Memory(path) as memory:
            memory.begin("x")
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    finally:
        os.umask(mask)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMPIPE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "memory.sqlite3"
    monkeypatch.delenv("LLMPIPE_HOME")
    assert default_path() == Path.home() / ".llmpipe" / "memory.sqlite3"


def test_every_write_waits_for_the_disk(memory: Memory) -> None:
    connection = memory._file.connection()
    asked = ("journal_mode", "synchronous", "foreign_keys")
    assert [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in asked] == ["wal", 2, 1]


def refused(path: Path) -> tuple[type[LlmpipeError], str, str | None]:
    with pytest.raises(LlmpipeError) as error:
        Memory(path)
    return type(error.value), str(error.value), error.value.hint


def test_a_newer_file_is_left_as_it_is(path: Path) -> None:
    Memory(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 2")
    raw.close()
    before = path.read_bytes()
    assert refused(path) == (
        DataError,
        f"{path} is of a newer llmpipe: its version is 2, this one knows 1",
        "pip install --upgrade llmpipe, or name another folder in LLMPIPE_HOME",
    )
    assert path.read_bytes() == before


def test_a_database_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite3"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE message (id INTEGER)")
    raw.close()
    before = path.read_bytes()
    kind, said, hint = refused(path)
    assert (kind, said) == (DataError, f"{path} is a database, but not a memory of llmpipe")
    assert hint == "name another folder in LLMPIPE_HOME; the file was left as it is" and path.read_bytes() == before


def test_a_broken_file_is_left_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all, " * 400)
    before = path.read_bytes()
    kind, said, hint = refused(path)
    assert (kind, said) == (DataError, f"{path} is broken: file is not a database")
    assert hint == (
        "nothing was overwritten; move it away to begin anew, "
        f"or save what can be read: sqlite3 {path} .recover | sqlite3 saved.sqlite3"
    )
    assert path.read_bytes() == before


def test_a_file_that_is_locked(memory: Memory, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory._file.connection().execute("PRAGMA busy_timeout = 20")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TalkError, match=r"another process has kept .* locked for 30 s") as told:
        memory.begin("x")
    assert told.value.hint == "end the other llmpipe or the program that has the file open, and try again"
    assert memory.conversations() == []  # to read nobody waits
    other.execute("ROLLBACK")
    assert memory.begin("x") == 1
    other.close()


def test_a_full_disk(memory: Memory, path: Path) -> None:
    talk = memory.begin("x")
    memory.add(talk, user("kept"))
    memory._file.connection().execute("PRAGMA max_page_count = 40")
    with pytest.raises(TalkError) as told:
        memory.add(talk, user("word " * 100_000))
    assert str(told.value) == f"the disk of {path} is full; this was not kept"
    assert [one.content for one in memory.messages(talk)] == ["kept"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file", encoding="utf-8")
    path = tmp_path / "home" / "memory.sqlite3"
    kind, said, hint = refused(path)
    assert kind is TalkError and said.startswith(f"cannot keep a memory in {path}: ")
    assert hint == "name a folder that can be written in LLMPIPE_HOME"


def test_a_file_that_cannot_be_written(memory: Memory, path: Path) -> None:
    """As root of a container, one may write everywhere: SQLite is told to refuse."""
    memory._file.connection().execute("PRAGMA query_only = ON")
    with pytest.raises(TalkError, match="cannot be written: attempt to write a readonly database") as told:
        memory.begin("x")
    assert told.value.hint == "chmod u+w the file and its folder, or name another folder in LLMPIPE_HOME"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="who may write everywhere is refused nothing")
def test_a_folder_that_cannot_be_written(path: Path) -> None:
    path.parent.mkdir(mode=0o500)
    assert refused(path)[0] is TalkError


def test_schema_and_index_are_changed_together() -> None:
    """Who changes how text is indexed must raise the version and rebuild: an index is told its old words to forget."""
    assert memory_file.VERSION == 1 and memory_file.spaced("Ａ我的b") == "A 我  的 b"
