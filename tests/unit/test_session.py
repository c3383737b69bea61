"""A conversation: what is sent, what is kept, what is taken back; by a scripted engine, with a memory and without."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from llmpipe.errors import TalkError
from llmpipe.talk import attachments
from llmpipe.talk.engine import Sampling
from llmpipe.talk.memory import Memory
from llmpipe.talk.session import Note, Piece, Session
from tests.unit.scripted import ScriptedEngine


@pytest.fixture(params=["memory", "no memory"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Memory | None]:
    if request.param == "no memory":
        yield None
        return
    with Memory(tmp_path / "memory.sqlite3") as found:
        yield found


def text_of(parts: Iterator[Piece | Note]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Piece))


def turns(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


def is_kept(session: Session) -> bool:
    """Whether the memory, where there is one, has what the session has."""
    if session.memory is None or session.conversation is None:
        return session.memory is None
    kept = [stored.message for stored in session.memory.messages(session.conversation)]
    return kept == [turn for turn in session.messages if turn["role"] != "system"]


def test_each_answer_is_asked_for_with_all_that_was_said(memory: Memory | None) -> None:
    engine = ScriptedEngine(["Good day.", "Miso."])
    session = Session(engine, memory, system="Be short.")
    assert text_of(session.say("Hello! My cat is Miso.")) == "Good day."
    assert text_of(session.say("What is my cat's name?")) == "Miso."
    said = turns("Hello! My cat is Miso.", "Good day.", "What is my cat's name?")
    assert engine.asked[-1][0]["content"].startswith("Be short.")
    assert engine.asked[-1][1:] == said
    assert session.messages[1:] == [*said, {"role": "assistant", "content": "Miso."}]
    assert is_kept(session)


def test_a_closed_answer_is_kept_as_far_as_it_came(memory: Memory | None) -> None:
    engine = ScriptedEngine(["one two three four"])
    session = Session(engine, memory)
    answer = session.say("Count.")
    assert [part.text for part in islice(answer, 2)] == ["one", " two"]
    answer.close()
    assert engine.stopped == 1
    assert session.answer == "one two"
    assert is_kept(session)


def test_an_interrupt_within_the_engine_keeps_the_answer_too() -> None:
    class Interrupted(ScriptedEngine):
        def _told(self, asked, tokens, how):  # type: ignore[no-untyped-def]
            yield Piece("one")
            raise KeyboardInterrupt

    session = Session(Interrupted(["never"]))
    with pytest.raises(KeyboardInterrupt):
        text_of(session.say("Count."))
    assert session.messages == turns("Count.", "one")


def test_retry_answers_the_same_question_by_another_seed(memory: Memory | None) -> None:
    engine = ScriptedEngine(["red", "blue"])
    session = Session(engine, memory, sampling=Sampling(seed=5))
    assert text_of(session.say("A colour?")) == "red"
    assert text_of(session.retry()) == "blue"
    assert engine.asked[0] == engine.asked[1]
    assert [how.seed for how in engine.how] == [5, 6]
    assert session.messages == turns("A colour?", "blue")
    assert is_kept(session)


def test_undo_takes_question_and_answer_back(memory: Memory | None) -> None:
    session = Session(ScriptedEngine(["a", "b"]), memory)
    text_of(session.say("one"))
    text_of(session.say("two"))
    assert session.undo() == "two"
    assert session.messages == turns("one", "a")
    assert is_kept(session)
    session.undo()
    with pytest.raises(TalkError, match=r"^there is nothing to undo yet$"):
        session.undo()
    with pytest.raises(TalkError, match=r"^there is nothing to retry yet$"):
        next(session.retry())


def test_a_question_that_failed_can_be_retried_and_does_not_stay(memory: Memory | None) -> None:
    engine = ScriptedEngine([TalkError("the server is away"), TalkError("still"), "hello"])
    session = Session(engine, memory)
    with pytest.raises(TalkError, match="the server is away"):
        text_of(session.say("one"))
    with pytest.raises(TalkError, match="still"):
        text_of(session.retry())
    assert text_of(session.say("two")) == "hello"
    assert engine.asked[-1] == turns("two")
    assert session.messages == turns("two", "hello")
    assert is_kept(session)


def test_a_conversation_goes_on_from_memory(tmp_path: Path) -> None:
    with Memory(tmp_path / "memory.sqlite3") as memory:
        first = Session(ScriptedEngine(["a"]), memory)
        assert first.conversation is None  # looking in leaves nothing behind
        assert memory.conversations() == []
        text_of(first.say("one"))
        engine = ScriptedEngine(["b"])
        again = Session(engine, memory, conversation=first.conversation)
        assert (again.question, again.answer) == ("one", "a")
        text_of(again.say("two"))
        assert engine.asked == [turns("one", "a", "two")]
        again.undo()
        assert [stored.content for stored in memory.messages(first.conversation or 0)] == ["one", "a"]


def test_without_memory_the_oldest_turns_are_left_out_and_the_system_text_stays() -> None:
    engine = ScriptedEngine(["four words of answer"], context=30)
    session = Session(engine, system="be short", sampling=Sampling(max_new_tokens=8))
    notes = []
    for number in range(5):
        notes += [part.text for part in session.say(f"question {number} it is") if isinstance(part, Note)]
        assert engine.count(engine.asked[-1]) <= 30 - 8
        assert engine.asked[-1][0] == {"role": "system", "content": "be short"}
        assert engine.asked[-1][1]["role"] == "user"
    assert notes == [
        "the context is full: 2 earlier turns are left out",
        "the context is full: 4 earlier turns are left out",
    ]
    assert len(session.messages) == 11


def test_room_is_left_for_the_answer(memory: Memory | None) -> None:
    engine = ScriptedEngine(["Ten words are what this answer has, all in all."], context=60)
    session = Session(engine, memory, sampling=Sampling(max_new_tokens=20))
    for turn in range(8):
        text_of(session.say(f"Question {turn} with some more words in it."))
        assert engine.count(engine.asked[-1]) <= 60 - 20


def test_another_model_answers_the_last_question_and_nothing_of_it_stays(memory: Memory | None) -> None:
    session = Session(ScriptedEngine(["a", "b"]), memory)
    text_of(session.say("one"))
    text_of(session.say("two"))
    other = ScriptedEngine(["c"])
    assert text_of(session.asked_of(other)) == "c"
    assert other.asked == [turns("one", "a", "two")]
    assert session.messages == turns("one", "a", "two", "b")


def test_a_model_without_turns_goes_on_with_the_last_text() -> None:
    engine = ScriptedEngine([" a time"], chats=False)
    session = Session(engine)
    text_of(session.say("Hello"))
    assert text_of(session.say("Once upon")) == " a time"
    assert engine.asked == ["Hello", "Once upon"]


def test_modes() -> None:
    session = Session(ScriptedEngine(["a"]))
    assert session.mode == "chat"
    session.mode = "deep-search"
    assert session.mode == "deep-search"
    with pytest.raises(TalkError, match=r"^there is no mode 'chatt', did you mean chat\?$"):
        session.mode = "chatt"
    assert session.mode == "deep-search"


def test_nothing_said_is_nothing_asked(memory: Memory | None) -> None:
    session = Session(ScriptedEngine(["a"]), memory)
    with pytest.raises(TalkError, match=r"^there is nothing to answer$"):
        next(session.say("  \n"))
    assert session.conversation is None and session.messages == []


# ---- Attachments ------------------------------------------------------------------------------


def test_files_go_before_the_words_in_a_fence_that_they_cannot_end(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n")
    (tmp_path / "notes.md").write_text("# Notes\n````\ncode\n````\n", encoding="utf-8")
    files = [attachments.read(tmp_path / name) for name in ("table.csv", "notes.md")]
    engine = ScriptedEngine(["ok"])
    text_of(Session(engine).say("What is this?", files))
    assert engine.asked[0][0]["content"] == (  # type: ignore[index]
        "table.csv:\n```csv\na,b\n1,2\n```\n\n"
        "notes.md:\n`````markdown\n# Notes\n````\ncode\n````\n`````\n\n"
        "What is this?"
    )


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("paper.pdf", b"%PDF", "paper.pdf: .pdf files are not read yet"),
        ("run.exe", b"MZ", "run.exe: is none of the kinds that are read: .txt, .md, .csv, .json"),
        ("latin.txt", b"caf\xe9", "latin.txt: is no text in UTF-8"),
        ("nul.txt", b"a\0b", "nul.txt: is no text: there are NUL characters in it"),
        ("big.txt", b"a" * 1_000_001, "big.txt: is larger than 1,000,000 bytes, the most that is read"),
        ("../../up.pdf", b"", "up.pdf: .pdf files are not read yet"),
    ],
)
def test_files_that_are_refused(name: str, data: bytes, said: str) -> None:
    with pytest.raises(TalkError) as refused:
        attachments.of(name, data)
    assert str(refused.value) == said


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TalkError, match=r"no\.txt: cannot be read: No such file or directory$"):
        attachments.read(tmp_path / "no.txt")
