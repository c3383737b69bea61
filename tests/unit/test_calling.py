"""A model that calls tools: what is sent, asked, made, refused and kept; by a scripted engine and real tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmpipe.errors import TalkError
from llmpipe.talk import calling
from llmpipe.talk.engine import Piece, Sampling
from llmpipe.talk.kept import conversation as saved
from llmpipe.talk.kit import Kit, Wish
from llmpipe.talk.memory import Memory
from llmpipe.talk.sent import LEFT_OUT
from llmpipe.talk.session import Note, Session
from llmpipe.tools import toolbox
from llmpipe.tools.tool import Needs, Tool
from llmpipe.tools.toolbox import Toolbox
from tests.unit.scripted import CallingEngine, call

SUM = call("calculator", expression="17 * 23")


class Asked:
    """A user who answers questions for consent, and what was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.wishes: list[Wish] = []

    def __call__(self, wish: Wish) -> Any:
        self.wishes.append(wish)
        return self.answers.pop(0) if self.answers else "no"


def web(made: list[Any], name: str = "look_up", needs: Needs = "network", said: str = "It is warm.") -> Tool:
    """A tool that keeps what it was called with."""

    def run(arguments: Mapping[str, Any]) -> str:
        made.append(arguments)
        return said

    schema = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
    return Tool(name, "Looks things up.", schema, needs, run)


@pytest.fixture(params=["memory", "no memory"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Memory | None]:
    if request.param == "no memory":
        yield None
        return
    with Memory(tmp_path / "memory.sqlite3") as found:
        yield found


@contextmanager
def calculating(engine: CallingEngine, memory: Memory | None = None, **more: Any) -> Iterator[Session]:
    with toolbox.opened(["calculator"], files=list) as box:
        yield Session(engine, memory, kit=Kit(box, on=["calculator"]), **more)


def talking(engine: CallingEngine, made: list[Any], asks: Callable[[Wish], Any], **more: Any) -> Session:
    return Session(engine, kit=Kit(Toolbox([web(made, **more)]), on=["look_up", "run"], asks=asks))


def heard(parts: Iterator[Any]) -> tuple[str, list[str]]:
    """Return what was said, and the notes."""
    all_of_it = list(parts)
    text = "".join(part.text for part in all_of_it if isinstance(part, Piece))
    return text, [part.text for part in all_of_it if isinstance(part, Note)]


def roles(session: Session) -> list[str]:
    return [message["role"] for message in session.messages]


def is_kept(session: Session) -> bool:
    if session.memory is None or session.conversation is None:
        return session.memory is None
    return [one.message for one in session.memory.messages(session.conversation)] == session.messages


def test_a_call_is_made_and_its_result_answered(memory: Memory | None) -> None:
    engine = CallingEngine([f"Let me see. {SUM}", "It is 391."])
    with calculating(engine, memory) as session:
        text, notes = heard(session.say("What is 17 * 23?"))
    assert (text, notes) == ("Let me see.\n\nIt is 391.", ['calculator {"expression": "17 * 23"}'])
    assert engine.offered == [["calculator"]] * 2
    question, called, result = engine.asked[-1]
    assert (question["role"], called["content"]) == ("user", "Let me see.")  # type: ignore[index]
    assert called["tool_calls"][0]["id"] == result["tool_call_id"]  # type: ignore[index]
    assert result["role"] == "tool" and "391" in result["content"]  # type: ignore[index]
    assert roles(session) == ["user", "assistant", "tool", "assistant"]
    assert (session.answer, session.question) == ("It is 391.", "What is 17 * 23?")
    assert is_kept(session)


def test_undo_retry_and_the_next_turn_see_calls_and_results_together(memory: Memory | None) -> None:
    engine = CallingEngine([SUM, "391", SUM, "It is 391", "Good bye", "Hello"])
    with calculating(engine, memory) as session:
        heard(session.say("17 * 23?"))
        assert heard(session.retry())[0] == "It is 391"
        heard(session.say("Thank you"))
        assert [one["role"] for one in engine.asked[-1]] == ["user", "assistant", "tool", "assistant", "user"]  # type: ignore[index]
        assert session.undo() == "Thank you"
        assert session.undo() == "17 * 23?"
        assert session.messages == [] and is_kept(session)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('<tool_call>{"name": "calculator", "arguments": {</tool_call>', "this is no call that can be read"),
        (call("calculater", expression="1"), "there is no tool calculater, did you mean calculator?"),
        (call("calculator", sum="1"), "calculator"),
        (call("calculator"), "calculator"),
    ],
)
def test_a_wrong_call_is_mended_once(wrong: str, said: str, memory: Memory | None) -> None:
    engine = CallingEngine([wrong, SUM, "391"])
    with calculating(engine, memory) as session:
        text, notes = heard(session.say("17 * 23?"))
    told = engine.asked[1][-1]["content"]  # type: ignore[index]
    assert told.startswith(f"Wrong call: {said}")
    assert notes[0].startswith(f"a call was wrong, and the model is told: {said}") and len(notes) == 2
    assert (text, session.answer) == ("391", "391") and is_kept(session)


def test_a_second_wrong_call_is_refused_and_the_model_has_to_answer() -> None:
    engine = CallingEngine([call("calc", x=1), call("calc", x=2), "I do not know."])
    with calculating(engine) as session:
        text, notes = heard(session.say("17 * 23?"))
    assert text == "I do not know."
    assert [note.partition(":")[0] for note in notes] == [
        "a call was wrong, and the model is told",
        "a call was wrong again, and is refused",
    ]
    assert engine.asked[-1][-1]["content"].endswith("No more tools can be called now: answer with what is known.")  # type: ignore[index]


def test_what_is_sent_again_is_well_formed_whatever_was_called() -> None:
    engine = CallingEngine(["<tool_call>{'name': oh</tool_call>", "Sorry."])
    with calculating(engine) as session:
        heard(session.say("Hi"))
    (function,) = [one["function"] for one in session.messages[1]["tool_calls"]]
    assert function == {"name": "unknown", "arguments": "{}"}


def test_rounds_end() -> None:
    sums = iter(range(100))
    engine = CallingEngine([])
    engine.answers = [lambda _: engine.answers.append(next_sum) or call("calculator", expression=str(next(sums)))]
    next_sum = engine.answers[0]
    with calculating(engine) as session:
        _, notes = heard(session.say("Count."))
    assert len(engine.asked) == calling.MOST_ROUNDS + 1
    assert notes[-1] == "it wants to call more tools, and is not let: ask again to go on"
    assert roles(session).count("tool") == calling.MOST_ROUNDS


def test_the_same_call_is_made_once() -> None:
    made: list[Any] = []
    engine = CallingEngine([call("look_up", at="Bern")] * 3 + ["Warm."])
    session = talking(engine, made, Asked("conversation"))
    _, notes = heard(session.say("How is it?"))
    assert made == [{"at": "Bern"}]
    assert notes[1] == 'look_up {"at": "Bern"}: the same call again is not made'


def test_a_stopped_answer_leaves_no_call_without_a_result(memory: Memory | None) -> None:
    with calculating(CallingEngine([f"Let me see. {SUM}", "391"]), memory) as session:
        parts = session.say("17 * 23?")
        while not isinstance(next(parts), Note):
            pass
        parts.close()
        assert roles(session) == ["user", "assistant"]
        assert session.answer is not None
        assert session.answer.strip() == "Let me see." and "tool_calls" not in session.messages[-1]
        assert is_kept(session)


# ---- Consent ----------------------------------------------------------------------------------


def test_each_call_is_asked_for_and_no_means_no() -> None:
    made: list[Any] = []
    asked = Asked("once", "no")
    engine = CallingEngine([call("look_up", at="Bern"), call("look_up", at="Basel"), call("look_up", at="Biel"), "ok"])
    _, notes = heard(talking(engine, made, asked).say("How is it?"))
    assert made == [{"at": "Bern"}]
    why = "it sends this to other computers and reads what they answer"
    assert asked.wishes == [Wish("look_up", f'{{"at": "{town}"}}', why) for town in ("Bern", "Basel")]
    assert notes[1:] == ['look_up {"at": "Basel"}: not allowed', 'look_up {"at": "Biel"}: not allowed']
    assert engine.asked[2][-1]["content"] == "The user did not allow this call. Do without it."  # type: ignore[index]


def test_all_of_a_conversation_are_allowed_by_one_word_and_not_of_another() -> None:
    made: list[Any] = []
    asked = Asked("conversation")
    engine = CallingEngine([call("look_up", at="Bern"), call("look_up", at="Basel"), "ok"])
    session = talking(engine, made, asked)
    heard(session.say("How is it?"))
    assert len(made) == 2 and len(asked.wishes) == 1
    assert session.kit is not None and session.kit.allowed == {"look_up"} and session.kit.afresh().allowed == set()


def test_what_is_off_is_not_called_even_if_it_was_allowed() -> None:
    made: list[Any] = []
    engine = CallingEngine([call("look_up", at="Bern"), "ok"])
    kit = Kit(Toolbox([web(made), web(made, "other", "nothing")]), on=["other"], allowed=["look_up"])
    kit.turn_off("look_up")
    session = Session(engine, kit=kit)
    _, notes = heard(session.say("How is it?"))
    assert made == [] and engine.offered[0] == ["other"]
    assert notes == ["a call was wrong, and the model is told: there is no tool look_up; there is other"]


def test_nobody_to_ask_is_no() -> None:
    made: list[Any] = []
    session = Session(CallingEngine([call("look_up", at="Bern"), "ok"]), kit=Kit(Toolbox([web(made)]), on=["look_up"]))
    assert heard(session.say("How is it?"))[1] == ['look_up {"at": "Bern"}: not allowed'] and made == []


def test_what_is_asked_hides_nothing() -> None:
    asked = Asked("no")
    disguised = "\x1b[2K\u202eparis\u200b" + "x" * 5_000
    heard(talking(CallingEngine([call("look_up", at=disguised), "ok"]), [], asked).say("Hi"))
    (wish,) = asked.wishes
    assert wish.arguments.startswith('{"at": "\\u001b[2K\\u202eparis\\u200bxxx')
    assert wish.arguments.endswith("xxx… (5,036 characters)") and len(wish.arguments) < 450


def test_files_are_those_that_the_user_named(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("The code is 4711.", encoding="utf-8")
    (tmp_path / "secret.md").write_text("A secret.", encoding="utf-8")
    files: list[Path] = []
    with toolbox.opened(["read_file"], files=lambda: files) as box:
        kit = Kit(box, on=["read_file"], files=files)
        assert kit.offered() == []
        kit.name_file(tmp_path / "notes.md")
        engine = CallingEngine([call("read_file", name="notes.md"), call("read_file", name="secret.md"), "4711"])
        session = Session(engine, kit=kit)
        heard(session.say("What is the code?"))
        with pytest.raises(TalkError, match=r"no\.md: is no file$"):
            kit.name_file(tmp_path / "no.md")
    assert engine.asked[0][0]["content"] == "Files that read_file reads: notes.md\n\nWhat is the code?"  # type: ignore[index]
    results = [one["content"] for one in session.messages if one["role"] == "tool"]
    assert "4711" in results[0] and "A secret" not in results[1]


# ---- The window, and what is kept ---------------------------------------------------------------


def test_results_make_room_and_calls_keep_theirs(memory: Memory | None) -> None:
    towns = ("Bern", "Basel", "Biel")
    kit = Kit(Toolbox([web([], said="warm " * 40)]), on=["look_up"], allowed=["look_up"])
    engine = CallingEngine([*(call("look_up", at=town) for town in towns), "Warm."], context=200)
    session = Session(engine, memory, kit=kit, sampling=Sampling(max_new_tokens=20))
    assert heard(session.say("How is it?"))[0] == "Warm."
    results = [one["content"] for one in engine.asked[-1] if one["role"] == "tool"]  # type: ignore[index]
    assert results[0] == LEFT_OUT and "warm" in results[-1]
    assert all(engine.count(asked) <= 180 for asked in engine.asked)  # type: ignore[arg-type]
    asked = [one["role"] for one in engine.asked[-1]]  # type: ignore[index]
    assert asked == ["user", *["assistant", "tool"] * 3]
    assert is_kept(session)


def test_what_is_saved_writes_calls_as_words(tmp_path: Path) -> None:
    with Memory(tmp_path / "memory.sqlite3") as memory:
        with calculating(CallingEngine([SUM, "391"]), memory) as session:
            heard(session.say("17 * 23?"))
        turns = saved(session.messages)["messages"]
        with (tmp_path / "kept.jsonl").open("w", encoding="utf-8") as file:
            memory.export(file)
        assert memory.search("391")[0].role in ("assistant", "tool")
    assert [set(turn) for turn in turns] == [{"role", "content"}] * 4
    assert turns[1]["content"] == (
        '<tool_call>\n{"name": "calculator", "arguments": {"expression": "17 * 23"}}\n</tool_call>'
    )
    assert '"tool_calls"' not in (tmp_path / "kept.jsonl").read_text(encoding="utf-8")
