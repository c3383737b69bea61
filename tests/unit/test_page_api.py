"""What the page asks for: answers as JSON lines, what is kept of them, and preferences that `reward` reads."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmpipe.data.preferences import preferences
from llmpipe.data.rows import read_rows
from llmpipe.errors import TalkError
from llmpipe.ranking.export import export
from llmpipe.ranking.store import Store
from llmpipe.talk.engine import Piece
from llmpipe.talk.kit import Kit
from llmpipe.talk.memory import Memory
from llmpipe.talk.serve import consent
from llmpipe.tools.tool import Tool
from llmpipe.tools.toolbox import Toolbox
from tests.unit.scripted import CallingEngine, ScriptedEngine, call
from tests.unit.served import Served, served


class Gated(ScriptedEngine):
    """Says one word, and the next ones once it may."""

    def __init__(self, answers: list[str | Exception]) -> None:
        super().__init__(answers)
        self.may_go_on = threading.Event()

    def chat(self, *call: Any) -> Iterator[Piece]:
        for number, piece in enumerate(super().chat(*call)):
            if number:
                assert self.may_go_on.wait(10)
            yield piece


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "memory.sqlite3") as memory:
        yield memory


def models() -> dict[str, ScriptedEngine]:
    return {
        "base": ScriptedEngine(["and so on"], chats=False),
        "sft": ScriptedEngine(["Hello there", "Again"]),
        "ppo": ScriptedEngine(["Good day"]),
    }


def say(server: Served, text: str = "Hi", **more: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the answers by model, and all else that the events said."""
    status, events = server.ask("POST", "/api/say", {"text": text, "model": "sft", **more})
    assert status == 200, events
    said: dict[str, str] = {}
    rest: dict[str, Any] = {}
    for event in events:
        if "text" in event:
            said[event["model"]] = said.get(event["model"], "") + event["text"]
        else:
            rest |= event
    return said, rest


def test_an_answer_comes_in_pieces_and_is_kept(memory: Memory) -> None:
    with served(models(), memory) as server:
        status, events = server.ask("POST", "/api/say", {"text": "Hi", "model": "sft"})
        opened = server.ask("GET", "/api/conversations/1")[1]
        state = server.ask("GET", "/api/state")[1]
    assert status == 200
    assert events[0] == {"conversation": 1, "content": "Hi"}
    assert [event["text"] for event in events if "text" in event] == ["Hello", " there"]
    assert (events[-2]["finish"], events[-2]["tokens"], events[-1]) == ("stop", 2, {"message": 2})
    assert [turn["role"] for turn in opened["turns"]] == ["user", "assistant"]
    assert opened["turns"][1]["answers"] == [{"model": "sft", "text": "Hello there"}]
    assert [one["title"] for one in state["conversations"]] == ["Hi"]
    assert [one["name"] for one in state["models"]] == ["base", "sft", "ppo"]
    assert [mode["name"] for mode in state["modes"] if not mode["missing"]] == ["chat"]


def looks(made: list[Any]) -> Kit:
    tool = Tool(
        "look_up", "Looks up.", {"type": "object"}, "network", lambda given: made.append(given) or "It is warm."
    )
    return Kit(Toolbox([tool]), on=["look_up"])


def read_until_asked(reply: Any) -> list[dict[str, Any]]:
    """Return the events up to the question."""
    events = [json.loads(reply.readline())]
    while "ask" not in events[-1]:
        events.append(json.loads(reply.readline()))
    return events


LOOK = call("look_up", at="Bern")


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_call_waits_for_the_user_and_its_steps_are_kept(memory: Memory, is_kept: bool) -> None:
    made: list[Any] = []
    engine = CallingEngine([f"Let me see. {LOOK}", "Warm.", LOOK, "Still warm."])
    with served({"sft": engine}, memory if is_kept else None, kit=looks(made)) as server:
        connection = server.begin("POST", "/api/say", {"text": "How is it?", "model": "sft"})
        reply = connection.getresponse()
        events = read_until_asked(reply)
        asked = events[-1]
        assert made == [] and (asked["tool"], asked["arguments"]) == ("look_up", '{"at": "Bern"}')
        assert server.ask("POST", "/api/consent", {"ask": "another", "answer": "once"}) == (200, {"waited": False})
        assert server.ask("POST", "/api/consent", {"ask": asked["ask"], "answer": "maybe"})[0] == 422
        said = {"ask": asked["ask"], "answer": "conversation"}
        assert server.ask("POST", "/api/consent", said) == (200, {"waited": True})
        events += [json.loads(line) for line in reply]
        connection.close()
        assert made == [{"at": "Bern"}]
        assert {"model": "sft", "note": 'look_up {"at": "Bern"}'} in events
        assert "".join(event.get("text", "") for event in events) == "Let me see.\n\nWarm."
        assert server.ask("POST", "/api/consent", said) == (200, {"waited": False})
        if is_kept:
            _, opened = server.ask("GET", "/api/conversations/1")
            answer = {"model": "sft", "text": "Let me see.\n\nWarm.", "notes": ['look_up {"at": "Bern"}']}
            assert [turn.get("answers") for turn in opened["turns"]] == [None, [answer]]
            assert [one.role for one in memory.messages(1)] == ["user", "assistant", "tool", "assistant"]
            assert say(server, "And now?", conversation=1)[0] == {"sft": "Still warm."}  # allowed for the conversation
            assert [one["role"] for one in engine.asked[2]] == ["user", "assistant", "tool", "assistant", "user"]  # type: ignore[index]
    assert len(made) == (2 if is_kept else 1)


def test_a_question_that_nobody_answers_is_a_no(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consent, "CONSENT_S", 0.2)
    made: list[Any] = []
    with served({"sft": CallingEngine([LOOK, "I may not."])}, memory, kit=looks(made)) as server:
        said, rest = say(server)
    assert (said, made, rest["answer"]) == ({"sft": "I may not."}, [], "no")


def test_who_goes_away_while_it_is_asked_leaves_nothing(memory: Memory) -> None:
    made: list[Any] = []
    with served({"sft": CallingEngine([LOOK, "Warm."])}, memory, kit=looks(made)) as server:
        connection = server.begin("POST", "/api/say", {"text": "How is it?", "model": "sft"})
        reply = connection.getresponse()
        asked = read_until_asked(reply)[-1]
        reply.close()
        connection.close()
        until = time.monotonic() + 10
        while memory.conversations() and time.monotonic() < until:
            time.sleep(0.01)
        while server.ask("POST", "/api/consent", {"ask": asked["ask"], "answer": "once"})[1]["waited"]:
            time.sleep(0.05)
    assert made == [] and memory.conversations() == []


def test_side_by_side_there_are_no_tools_and_deep_search_needs_its_own(memory: Memory) -> None:
    models = {"sft": CallingEngine(["Hi"]), "ppo": CallingEngine(["Hello"])}
    with served(models, memory, kit=looks([])) as server:
        say(server, compare=["ppo"])
        status, refused = server.ask("POST", "/api/say", {"text": "Hi", "model": "sft", "mode": "deep-search"})
        _, state = server.ask("GET", "/api/state")
    assert models["sft"].offered == models["ppo"].offered == [[]]
    missing = "llmpipe serve … --tools web_search,read_page lets it search the web"
    assert (status, refused["error"]["message"]) == (422, missing)
    assert state["modes"] == [{"name": "chat", "missing": None}, {"name": "deep-search", "missing": missing}]


def test_what_only_the_page_needs_is_sent_to_no_model(memory: Memory) -> None:
    engines = models()
    with served(engines, memory) as server:
        say(server, "Look", attachments=[{"name": "a.csv", "text": "x,1"}], compare=["ppo"])
        say(server, "And?", conversation=1)
        _, opened = server.ask("GET", "/api/conversations/1")
    assert {"role": "user", "text": "Look", "files": ["a.csv"]}.items() <= opened["turns"][0].items()
    asked = engines["sft"].asked[-1]
    assert [set(message) for message in asked] == [{"role", "content"}] * 3
    assert [message["content"] for message in asked] == ["a.csv:\n```csv\nx,1\n```\n\nLook", "Hello there", "And?"]
    assert [one.title for one in memory.conversations()] == ["Look"]


def test_several_models_answer_and_the_better_one_is_learnt_from(memory: Memory, tmp_path: Path) -> None:
    engines = models()
    with served(engines, memory) as server:
        said, rest = say(server, compare=["ppo", "base", "sft"])
        choice = {"conversation": 1, "message": rest["message"], "chosen": "ppo"}
        status, preferred = server.ask("POST", "/api/prefer", choice)
        turn = server.ask("GET", "/api/conversations/1")[1]["turns"][-1]
        again = server.ask("POST", "/api/prefer", choice | {"message": preferred["message"], "chosen": "base"})
        say(server, "And?", conversation=1)
    assert said == {"sft": "Hello there", "ppo": "Good day", "base": "and so on"}
    assert engines["base"].asked == ["Hi"]
    assert (status, turn["preferred"], turn["message"]) == (200, "ppo", preferred["message"])
    assert (again[0], again[1]["error"]["message"]) == (409, "the answer of ppo was chosen before")
    assert engines["sft"].asked[-1][1] == {"role": "assistant", "content": "Good day"}
    with Store(tmp_path / "rankings.sqlite3") as store:
        export(store, tmp_path / "pairs.jsonl", "pairs")
    pairs = [pair for _, pair in preferences(read_rows([tmp_path / "pairs.jsonl"]))]
    assert [(pair.chosen[0]["content"], pair.rejected[0]["content"]) for pair in pairs] == [
        ("Good day", "Hello there"),
        ("Good day", "and so on"),
    ]
    assert {pair.prompt[0]["content"] for pair in pairs} == {"Hi"}


def test_thumbs_are_kept_shown_again_and_changed(memory: Memory, tmp_path: Path) -> None:
    with served(models(), memory) as server:
        _, rest = say(server, compare=["ppo"])
        about = {"conversation": 1, "message": rest["message"]}
        assert server.ask("POST", "/api/thumb", about | {"model": "sft", "good": False})[0] == 200
        assert server.ask("POST", "/api/thumb", about | {"model": "sft", "good": True})[0] == 200
        status, refused = server.ask("POST", "/api/thumb", about | {"model": "base", "good": True})
        assert (status, refused["error"]["message"]) == (409, f"message {rest['message']} has no answer of base")
        turn = server.ask("GET", "/api/conversations/1")[1]["turns"][-1]
    assert turn["thumbs"] == {"sft": True}
    with Store(tmp_path / "rankings.sqlite3") as store:
        assert [thumb.is_good for thumb in store.thumbs()] == [True]


def test_who_goes_away_stops_the_answer_and_what_came_is_kept(memory: Memory) -> None:
    engine = Gated(["One two three four"])
    with served({"sft": engine}, memory) as server:
        connection = server.begin("POST", "/api/say", {"text": "Count", "model": "sft"})
        reply = connection.getresponse()
        assert [json.loads(reply.readline()).get("text") for _ in range(2)] == [None, "One"]
        reply.close()
        connection.close()
        until = time.monotonic() + 10
        while len(memory.messages(1)) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        engine.may_go_on.set()
        while not engine.stopped and time.monotonic() < until:
            time.sleep(0.01)
        assert say(server, "Again", conversation=1)[0] == {"sft": "One two three four"}
    assert [one.content for one in memory.messages(1)] == ["Count", "One", "Again", "One two three four"]
    assert engine.stopped == 1


def test_a_question_that_nobody_answers_is_taken_back(memory: Memory) -> None:
    with served({"sft": ScriptedEngine([TalkError("out of memory", hint="a smaller one")])}, memory) as server:
        _, rest = say(server)
        assert (rest["error"], rest["taken_back"]) == ("out of memory; a smaller one", True)
        assert memory.conversations() == []
        before = memory.begin("sft")
        memory.add(before, {"role": "user", "content": "Hi"})
        memory.add(before, {"role": "assistant", "content": "Hello"})
        say(server, conversation=before)
    assert [one.content for one in memory.messages(before)] == ["Hi", "Hello"]


def test_a_failure_of_the_code_says_nothing_of_it(memory: Memory) -> None:
    with served({"sft": ScriptedEngine([ValueError("/secret/path")])}, memory) as server:
        assert say(server)[1]["error"] == "the server failed; its log says why"


@pytest.mark.parametrize(
    ("question", "status", "message"),
    [
        ({"model": "gpt"}, 404, "no model gpt is served; there are base, sft, ppo"),
        ({"compare": ["gpt"]}, 404, "no model gpt is served; there are base, sft, ppo"),
        ({"text": " "}, 422, "there is no question"),
        ({"conversation": 7}, 409, "there is no conversation 7"),
        ({"attachments": [{"name": "a.exe", "text": "x"}]}, 422, "a.exe: is none of the kinds that are read"),
        ({"attachments": [{"name": "a.txt", "text": "x\0"}]}, 422, "a.txt: is no text: there are NUL characters"),
    ],
)
def test_a_question_that_cannot_be(memory: Memory, question: dict[str, Any], status: int, message: str) -> None:
    with served(models(), memory) as server:
        got, said = server.ask("POST", "/api/say", {"text": "Hi", "model": "sft", **question})
    assert (got, message in said["error"]["message"]) == (status, True), said
    assert memory.conversations() == []


def test_conversations_are_found_by_title_and_by_what_was_said(memory: Memory) -> None:
    for question, title in (("The duck. " + "la " * 100 + "swims home", "A"), ("A fox", "Duck and fox"), ("Hens", "C")):
        one = memory.begin("sft")
        memory.add(one, {"role": "user", "content": question})
        memory.rename(one, title)
    with served(models(), memory) as server:
        found = server.ask("GET", "/api/search?q=duck")[1]["conversations"]
        (far,) = server.ask("GET", "/api/search?q=swims")[1]["conversations"]
        assert server.ask("GET", "/api/search?q=%22*")[1] == {"conversations": []}
        assert server.ask("PATCH", "/api/conversations/3", {"title": "Hen house"})[1]["title"] == "Hen house"
        assert server.ask("DELETE", "/api/conversations/1")[0] == 200
        assert [server.ask(how, "/api/conversations/1")[0] for how in ("GET", "DELETE")] == [404, 404]
    assert [one["title"] for one in found] == ["A", "Duck and fox"]
    assert far["excerpt"].startswith("…la la") and far["excerpt"].endswith("swims home")
    assert {one.title for one in memory.conversations()} == {"Duck and fox", "Hen house"}


def test_without_a_memory_the_page_says_what_was_said() -> None:
    engines = models()
    with served(engines) as server:
        history = [{"role": "user", "content": "I am Ann"}, {"role": "assistant", "content": "Hello Ann"}]
        _, rest = say(server, "Who am I?", history=history)
        state = server.ask("GET", "/api/state")[1]
        refused = server.ask("GET", "/api/conversations/1")
    assert rest["conversation"] is None and rest["message"] is None
    assert (state["memory"], state["conversations"]) == (False, [])
    assert [message["content"] for message in engines["sft"].asked[0]] == ["I am Ann", "Hello Ann", "Who am I?"]
    assert refused[0] == 409 and "--no-memory" in refused[1]["error"]["message"]
