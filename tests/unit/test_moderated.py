"""A moderated engine: what it is asked, what of its answers is shown, and how chat, API and page tell of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from rich.console import Console

from llmpipe import console
from llmpipe.errors import TalkError
from llmpipe.moderation.moderator import Refusal
from llmpipe.talk import commands
from llmpipe.talk.engine import Message, Piece, Sampling, Usage
from llmpipe.talk.memory import Memory
from llmpipe.talk.moderated import HELD_BACK, Moderated
from llmpipe.talk.repl import Chat
from llmpipe.talk.session import Session
from tests.unit.moderating import BLUNT, guard, logged, moderator
from tests.unit.scripted import ScriptedEngine
from tests.unit.served import TOKEN, served

HOW = Sampling()
BLAST: list[Message] = [{"role": "user", "content": "a blast"}]
HELLO: list[Message] = [{"role": "user", "content": "hello"}]


class Calling(ScriptedEngine):
    """Calls a tool with arguments."""

    arguments = json.dumps({"to": ["jo@example.org"], "n": 3})

    def chat(self, messages: Sequence[Message], how: Sampling, tools: Sequence[Message] = ()) -> Iterator[Piece]:
        call = {"id": "c", "type": "function", "function": {"name": "send", "arguments": self.arguments}}
        yield Piece("", "tool_calls", Usage(3, 2), (call,))


class Kept(ScriptedEngine):
    """Keeps its answers, so that nothing but closing them ends them."""

    def chat(self, *asked: Any, **more: Any) -> Iterator[Piece]:
        self.answer = super().chat(*asked, **more)
        return self.answer


def told(engine: Moderated, messages: list[Message]) -> tuple[str, list[str], Piece]:
    """Return the text, the notes and the last piece of an answer."""
    pieces = list(engine.chat(messages, HOW))
    return "".join(one.text for one in pieces), [one.note for one in pieces if one.note], pieces[-1]


def test_an_answer_passes_as_it_is_with_its_usage(tmp_path: Path) -> None:
    inner = ScriptedEngine(["One two three."])
    engine = Moderated(inner, moderator(tmp_path))
    assert told(engine, HELLO) == ("One two three.", [], Piece("", "stop", Usage(1, 3)))
    assert (engine.name, engine.context, engine.chats, engine.count(HELLO)) == ("scripted", 10_000, True, 1)
    assert "".join(one.text for one in engine.complete("Once", HOW)) == "One two three."
    engine.close()
    assert inner.is_closed
    assert logged(tmp_path) == []


def test_a_blocked_question_never_reaches_the_model(tmp_path: Path) -> None:
    inner = ScriptedEngine(["fine"])
    engine = Moderated(inner, moderator(tmp_path))
    for ask in (engine.chat(BLAST, HOW), engine.complete("a blast", HOW)):
        with pytest.raises(Refusal) as refused:
            list(ask)
        assert str(refused.value) == f"Held back by rude; {logged(tmp_path)[-1]['reference']}."
    assert inner.asked == []


def test_turns_before_are_judged_once_and_sent_as_they_may_be(tmp_path: Path) -> None:
    inner = ScriptedEngine(["fine"])
    engine = Moderated(inner, moderator(tmp_path))
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "blast"}]},
        *BLAST,
        {"role": "assistant", "content": "a blast of its own, shown once"},
        {"role": "tool", "content": "blast it, mail jo@example.org", "tool_call_id": "c"},
        *HELLO,
    ]
    for _ in range(2):
        told(engine, turns)
    sent = [one["content"] for one in inner.asked[-1]]
    assert sent == [HELD_BACK, HELD_BACK, turns[2]["content"], "[removed] it, mail [removed]", "hello"]
    assert [(one["place"], one["action"]) for one in logged(tmp_path)] == [
        ("input", "block"),
        ("tool", "redact"),
        ("tool", "redact"),
    ]
    assert inner.asked[-1][3]["tool_call_id"] == "c"


def test_what_was_not_checked_for_certain_is_checked_again(tmp_path: Path) -> None:
    with guard() as server:
        text = BLUNT + "  guarded: {layer: guard, category: unsafe, input: block}\n"
        text += f'guard: {{url: "{server.url}", model: watch, unreachable: allow}}\n'
        engine = Moderated(ScriptedEngine(["fine"]), moderator(tmp_path, text))
        server.status = 500
        turns = [{"role": "user", "content": "earlier"}, {"role": "assistant", "content": "yes"}, *HELLO]
        told(engine, turns)
        server.status = 200
        for _ in range(2):
            told(engine, turns)
        asked = [body["messages"][0]["content"] for _, _, body in server.asked]
    assert ["earlier" in one for one in asked] == [True, False, True, False, False]


def test_a_tool_result_that_is_blocked_leaves_the_question_standing(tmp_path: Path) -> None:
    inner = ScriptedEngine(["fine"])
    text = BLUNT.replace("tool: redact}\n  data", "tool: block}\n  data")
    engine = Moderated(inner, moderator(tmp_path, text))
    assert told(engine, [*HELLO, {"role": "tool", "content": "a blast"}])[0] == "fine"
    assert inner.asked[-1][-1]["content"] == HELD_BACK


def test_an_answer_is_redacted_and_blocked_in_the_middle(tmp_path: Path) -> None:
    inner = ScriptedEngine(["Mail jo@example.org or so.", "One two three: a blast of it all, and more of it."])
    engine = Moderated(inner, moderator(tmp_path))
    assert told(engine, HELLO)[0] == "Mail [removed] or so."
    text, notes, last = told(engine, HELLO)
    reference = logged(tmp_path)[-1]["reference"]
    assert text == f"One two three: \n\nHeld back by rude; {reference}."
    assert (notes, last.finish, inner.stopped) == ([], "content_filter", 1)
    assert last.usage is not None
    assert (last.usage.prompt_tokens, engine.refused) == (1, reference)
    assert last.usage.answer_tokens == 8  # pieces, until the word that is blocked was certain


def test_an_answer_that_is_blocked_at_once_is_the_refusal_alone(tmp_path: Path) -> None:
    engine = Moderated(ScriptedEngine(["blast"]), moderator(tmp_path))
    assert told(engine, HELLO)[0] == f"Held back by rude; {logged(tmp_path)[-1]['reference']}."


def test_who_closes_the_answer_stops_the_model(tmp_path: Path) -> None:
    inner = Kept(["One two three four five."])
    answer = Moderated(inner, moderator(tmp_path)).chat(HELLO, HOW)
    assert next(answer).text
    answer.close()
    assert inner.stopped == 1


def test_the_failure_of_the_model_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(TalkError, match="fell over"):
        told(Moderated(ScriptedEngine([TalkError("it fell over")]), moderator(tmp_path)), HELLO)


def test_what_a_tool_is_called_with_leaves_as_it_may(tmp_path: Path) -> None:
    inner = Calling([""])
    engine = Moderated(inner, moderator(tmp_path))
    (call,) = told(engine, HELLO)[2].tool_calls
    assert (call["id"], json.loads(call["function"]["arguments"])) == ("c", {"to": ["[removed]"], "n": 3})
    inner.arguments = '{"about": "a\\nblast"}'
    text, _, last = told(engine, HELLO)
    assert (text, last.finish, last.tool_calls) == (
        f"Held back by rude; {logged(tmp_path)[-1]['reference']}.",
        "content_filter",
        (),
    )
    inner.arguments = "{no json"
    assert told(engine, HELLO)[2].tool_calls[0]["function"]["arguments"] == "{no json"


def test_a_warning_stands_beside_the_answer(tmp_path: Path) -> None:
    inner = ScriptedEngine(["fine"])
    text, notes, _ = told(Moderated(inner, moderator(tmp_path)), [{"role": "user", "content": "Mail jo@example.org"}])
    reference = logged(tmp_path)[-1]["reference"]
    assert (text, notes) == ("fine", [f'moderation: the rule "data" holds here (email); {reference}'])
    assert inner.asked[-1][-1]["content"] == "Mail jo@example.org"


def test_an_appeal_goes_to_the_log_and_not_to_the_model(tmp_path: Path) -> None:
    inner = ScriptedEngine(["fine"])
    engine = Moderated(inner, moderator(tmp_path))
    with pytest.raises(Refusal):
        told(engine, BLAST)
    reference = engine.refused
    said: list[Message] = [{"role": "user", "content": f"/appeal {reference} a furnace has it"}]
    assert told(engine, said)[0] == f"Your appeal against {reference} is noted. A person will read it."
    assert (inner.asked, logged(tmp_path)[-1]["appeal"]) == ([], "a furnace has it")


def test_a_chat_shows_notes_takes_questions_back_and_appeals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=out, width=100, soft_wrap=True))
    monkeypatch.setattr(console, "err", Console(file=err, width=100, soft_wrap=True))
    inner = ScriptedEngine(["fine"])
    engine = Moderated(inner, moderator(tmp_path))
    with Memory(tmp_path / "memory.sqlite3") as memory:
        chat = Chat(Session(engine, memory), "scripted", lambda _: inner, lambda _: "")
        with pytest.raises(Refusal):
            chat.say("a blast")
        commands.try_run(chat, "/appeal it is about a furnace")
        chat.say("Mail jo@example.org")
        assert [one["content"] for one in chat.session.messages] == ["Mail jo@example.org", "fine"]
    assert "is noted" in err.getvalue()
    assert 'the rule "data" holds here (email)' in err.getvalue()
    assert out.getvalue() == "fine\n"
    assert any(line.get("appeal") == "it is about a furnace" for line in logged(tmp_path))
    err.truncate(0)
    commands.try_run(Chat(Session(inner), "scripted", lambda _: inner, lambda _: ""), "/appeal why")
    assert "nothing is moderated here" in err.getvalue()


def test_the_api_and_the_page_say_what_was_held_back(tmp_path: Path) -> None:
    inner = ScriptedEngine(["One two: a blast of it all, more of it.", "fine"])
    engine = Moderated(inner, moderator(tmp_path))
    with served({"scripted": engine}) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0)

        def ask(content: str, **more: Any) -> Any:
            messages: Any = [{"role": "user", "content": content}]
            return client.chat.completions.create(model="scripted", messages=messages, **more)

        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as refused:
                ask("a blast", stream=stream)
            assert refused.value.code == "content_filter"
        answer = ask("hello")
        assert answer.choices[0].finish_reason == "content_filter"
        assert answer.choices[0].message.content.startswith("One two:")
        assert answer.usage.total_tokens > 0
        assert "".join(one.choices[0].delta.content or "" for one in ask("hello", stream=True)) == "fine"

        assert server.ask("GET", "/api/state")[1]["moderated"] is True
        question = {"text": "a blast", "model": "scripted", "history": []}
        _, events = server.ask("POST", "/api/say", question)
        assert [one["error"] for one in events if "error" in one] == [
            f"Held back by rude; {logged(tmp_path)[-1]['reference']}."
        ]
        _, events = server.ask("POST", "/api/say", question | {"text": "Mail jo@example.org"})
        assert [one["note"] for one in events if "note" in one] == [
            f'moderation: the rule "data" holds here (email); {logged(tmp_path)[-1]["reference"]}'
        ]
