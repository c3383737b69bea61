"""What a model is sent of a conversation: it always fits, what matters is in it, and roles take turns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmpipe.errors import TalkError
from llmpipe.talk.engine import Message
from llmpipe.talk.memory import Memory
from llmpipe.talk.records import Summary
from llmpipe.talk.window import fitted
from tests.unit.scripted import ScriptedEngine

ROOM = 40
WEATHER = "It is sunny over the hills again today."


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "memory.sqlite3") as opened:
        opened._file.connection().execute("PRAGMA synchronous = OFF")  # hundreds of writes, and nobody pulls the plug
        yield opened


def said(memory: Memory, *texts: str) -> int:
    """Begin a conversation in which user and assistant take turns."""
    talk = memory.begin("scripted")
    for number, text in enumerate(texts):
        memory.add(talk, {"role": ("user", "assistant")[number % 2], "content": text})
    return talk


def chatter(turns: int) -> list[str]:
    return [text for number in range(turns) for text in (f"Weather report {number}? {WEATHER}", f"Noted {number}.")]


def system_of(messages: list[Message]) -> str:
    return str(messages[0]["content"]) if messages[0]["role"] == "system" else ""


def roles(messages: list[Message]) -> list[str]:
    return [message["role"] for message in messages]


def test_what_fits_is_sent_as_it_was_said(memory: Memory) -> None:
    talk = said(memory, "Hello.", "Hi.", "How are you?")
    engine = ScriptedEngine(["unused"])
    window = fitted(engine, memory, talk, None, answer_tokens=ROOM)
    assert window.messages == [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "How are you?"},
    ]
    assert (window.left_out, window.summarised, window.found, engine.asked) == (0, False, (), [])


def test_facts_follow_the_system_text(memory: Memory) -> None:
    memory.remember("The cat is called Miso.")
    memory.remember("Answers in French, please.")
    window = fitted(ScriptedEngine([""]), memory, said(memory, "Hello."), "Be kind.", answer_tokens=ROOM)
    assert system_of(window.messages) == (
        "Be kind.\n\nWhat the user asked to keep in mind:\n- The cat is called Miso.\n- Answers in French, please."
    )


def test_of_many_facts_the_telling_ones_stay(memory: Memory) -> None:
    memory.remember("The cat is called Miso.")
    for number in range(50):
        memory.remember(f"Order {number} came on a Monday.")
    window = fitted(ScriptedEngine([""], context=200), memory, said(memory, "My cat?"), None, answer_tokens=ROOM)
    facts = system_of(window.messages).splitlines()[1:]
    assert facts[0] == "- The cat is called Miso." and facts[-1] == "- Order 49 came on a Monday."
    assert len(facts) < 8


def test_a_fact_from_200_turns_ago_is_in_the_window(memory: Memory) -> None:
    talk = said(memory, "My locker at the station has the code 4711.", "I see.", *chatter(200))
    question = memory.add(talk, {"role": "user", "content": "Which code has my locker?"})
    window = fitted(ScriptedEngine(["They talked."], context=300), memory, talk, None, answer_tokens=ROOM)
    assert "- The user: My locker at the station has the code 4711." in system_of(window.messages)
    assert window.found[0] == memory.messages(talk)[0].id < question
    assert window.messages[-1] == {"role": "user", "content": "Which code has my locker?"}
    assert window.left_out + len(roles(window.messages)) - 1 == 403


@pytest.mark.parametrize("context", [70, 150, 400])
@pytest.mark.parametrize("answers", [["A summary of some words."], [TalkError("it is gone")]], ids=["model", "extract"])
def test_a_conversation_longer_than_the_context_goes_on(memory: Memory, context: int, answers: list[Any]) -> None:
    """At every turn it fits, begins with the user's turn and ends with the question, and roles take turns."""
    engine = ScriptedEngine(answers, context=context)
    talk = said(memory)
    for number, text in enumerate(chatter(60)):
        memory.add(talk, {"role": ("user", "assistant")[number % 2], "content": text})
        if number % 2:
            continue
        window = fitted(engine, memory, talk, "Be brief.", answer_tokens=ROOM)
        assert engine.count(window.messages) <= context - ROOM
        assert window.messages[-1]["content"] == text
        assert roles(window.messages) == ["system", *["user", "assistant"] * (len(window.messages) // 2 - 1), "user"]
        assert window.left_out + len(window.messages) - 1 == number + 1
    assert window.left_out > 60 and (window.summarised or context == 70)  # no sentence fits into that


def test_it_is_the_same_each_time(memory: Memory) -> None:
    talk = said(memory, *chatter(60), "Weather report 3?")
    engine = ScriptedEngine(["They talked."], context=300)
    first = fitted(engine, memory, talk, None, answer_tokens=ROOM)
    assert fitted(engine, memory, talk, None, answer_tokens=ROOM) == first
    assert len(engine.asked) == 1


def test_a_summary_stays_until_its_turns_need_more_room(memory: Memory) -> None:
    """It covers all that is left out, and is made anew from the one before and what came since."""
    engine = ScriptedEngine(["Summary one.", "Summary two."], context=300)
    talk = said(memory, *chatter(30))
    cuts = []
    for number in range(30, 60):
        memory.add(talk, {"role": "user", "content": f"Weather report {number}? {WEATHER}"})
        window = fitted(engine, memory, talk, None, answer_tokens=ROOM)
        memory.add(talk, {"role": "assistant", "content": f"Noted {number}."})
        cuts.append(window.left_out)
        known = memory.summary(talk)
        assert known and known.until == memory.messages(talk)[window.left_out - 1].id
        assert f"What was said before, in short:\n{known.text}" in system_of(window.messages)
    assert 2 < len(set(cuts)) < 12
    assert "What came before: Summary one." in engine.asked[1][0]["content"]
    assert len(engine.asked) == len(set(cuts))
    assert (engine.how[0].temperature, engine.how[0].max_new_tokens) == (0.0, 32)


def test_without_a_model_that_chats_the_summary_is_an_extract(memory: Memory) -> None:
    engine = ScriptedEngine(["unused"], context=300, chats=False)
    window = fitted(engine, memory, said(memory, *chatter(40), "Well?"), None, answer_tokens=ROOM)
    lines = system_of(window.messages).splitlines()
    assert lines[0] == "What was said before, in short:" and lines[-1].startswith("- Weather report ")
    assert engine.asked == []


def test_a_summary_that_is_too_long_is_cut(memory: Memory) -> None:
    """It was made for a model with more room."""
    engine = ScriptedEngine(["unused"], context=150)
    talk = said(memory, *chatter(40), "Well?")
    memory.keep_summary(talk, Summary(memory.messages(talk)[-2].id, "word " * 500))
    window = fitted(engine, memory, talk, None, answer_tokens=ROOM)
    assert window.summarised and engine.asked == []
    assert engine.count(window.messages) == 150 - ROOM


def test_a_question_that_does_not_fit_is_said_so(memory: Memory) -> None:
    talk = said(memory, "word " * 61)
    with pytest.raises(TalkError) as refused:
        fitted(ScriptedEngine([""], context=100), memory, talk, "Be brief.", answer_tokens=ROOM)
    assert str(refused.value) == (
        "the question has 63 tokens with the system text, and 60 fit: the context of scripted is 100, "
        "and 40 are kept for the answer"
    )
    assert refused.value.hint == "ask in fewer words, attach less, or allow a shorter answer"


def test_a_question_that_just_fits_is_sent_alone(memory: Memory) -> None:
    memory.remember("The cat is called Miso.")
    talk = said(memory, *chatter(9), "word " * 58)
    window = fitted(ScriptedEngine([""], context=100), memory, talk, "Be brief.", answer_tokens=ROOM)
    assert [roles(window.messages), system_of(window.messages)] == [["system", "user"], "Be brief."]
    assert (window.left_out, window.summarised) == (18, False)


def test_there_must_be_a_question(memory: Memory) -> None:
    with pytest.raises(TalkError, match="conversation 1 has no question to answer"):
        fitted(ScriptedEngine([""]), memory, said(memory), None, answer_tokens=ROOM)


def test_questions_without_an_answer_join_the_next(memory: Memory) -> None:
    """After an answer that failed; and what is in parts stays in parts."""
    talk = memory.begin("scripted")
    memory.add(talk, {"role": "assistant", "content": "Welcome!"})  # strict templates begin with the user
    for content in ("One?", "Two?", [{"type": "text", "text": "Three?"}]):
        memory.add(talk, {"role": "user", "content": content})
    window = fitted(ScriptedEngine([""]), memory, talk, None, answer_tokens=ROOM)
    parts = [{"type": "text", "text": "One?\n\nTwo?"}, {"type": "text", "text": "Three?"}]
    assert window.messages == [{"role": "user", "content": parts}]


def test_calls_of_tools_stay_with_their_turn(memory: Memory) -> None:
    """A result without its call is refused by templates: a turn is sent whole or not at all."""
    talk = said(memory, *chatter(20))
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
    turn = [
        {"role": "user", "content": "Look it up."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "found " * 20},
        {"role": "assistant", "content": "", "tool_calls": [call | {"id": "2"}]},
        {"role": "tool", "tool_call_id": "2", "content": "found " * 20},
    ]
    for message in turn:
        memory.add(talk, message)
    window = fitted(ScriptedEngine(["Talk."], context=110), memory, talk, None, answer_tokens=ROOM)
    assert window.messages[-5:] == turn
