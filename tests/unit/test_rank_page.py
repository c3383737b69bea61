"""The page's API: who may ask, what leaves the server, several annotators at once, a server that is killed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmpipe.ranking import sampling
from llmpipe.ranking.sampling import Round, Sampler
from llmpipe.ranking.store import Store
from llmpipe.talk.engine import Sampling
from tests.unit.rounds import MODELS, Annotator, asked, begin, page
from tests.unit.scripted import ScriptedEngine


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "rankings.sqlite3") as store:
        yield store


def test_a_link_works_once_and_nobody_else_gets_in(store: Store) -> None:
    with page(store, begin(store)) as server:
        ann = server.annotator("ann")
        assert Annotator(server.port, ann.code).sign_in() == 403  # used up
        stranger = Annotator(server.port, "guessed")
        assert stranger.sign_in() == 403
        status, refused = stranger.ask("GET", "/api/question")
        assert (status, refused["error"]["message"]) == (
            401,
            "this needs the link that llmpipe rank printed for an annotator",
        )
        assert "You are not signed in" in stranger.raw("GET", "/")[1]
        _, told = ann.ask("GET", "/api/question")
        said = {"question": told["question"]["id"], "verdict": "bad"}
        assert ann.raw("POST", "/api/ranking", said, Origin="http://evil.example")[0].status == 403
        assert ann.raw("GET", "/api/question", Host="evil.example")[0].status == 400
        policy = ann.raw("GET", "/")[0].headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
    assert store.rankings() == []


def all_ranked(annotator: Annotator, prefers: str) -> list[tuple[str, ...]]:
    """Rank everything: whatever ends so is the best, the others are tied; returns the answers as they were shown."""
    shown = []
    status, told = annotator.ask("GET", "/api/question")
    while question := told["question"]:
        shown.append(tuple(question["answers"]))
        ranks = [1 if text.endswith(prefers) else 2 for text in question["answers"]]
        status, told = annotator.rank(question, ranks)
        assert status == 200
    assert told["state"] == "done"
    return shown


def test_two_annotators_at_once_each_blind_and_in_an_order_of_their_own(store: Store) -> None:
    form = begin(store, prompts=8, count=4, gold=2)
    orders: dict[str, Any] = {}
    with page(store, form) as server:
        people = {name: server.annotator(name) for name in ("ann", "bob")}
        threads = [
            threading.Thread(target=lambda name=name: orders.update({name: all_ranked(people[name], ".2")}))
            for name in people
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for path in ("/", "/rank/rank.js", "/rank/rank.css", "/static/text.js"):
            people["ann"].raw("GET", path)
    told = " ".join(text for one in people.values() for text in one.seen)
    assert "answer 7.3" in told and not [name for name in (*MODELS, "secret", 'gold": ', 'model"') if name in told]
    of_prompt = {name: {tuple(sorted(one)): one for one in shown} for name, shown in orders.items()}
    assert of_prompt["ann"].keys() == of_prompt["bob"].keys() and len(of_prompt["ann"]) == 10
    assert sum(of_prompt["ann"][key] != of_prompt["bob"][key] for key in of_prompt["ann"]) >= 6
    tasks = {task.id: task for task in store.tasks()}
    kept = [one for one in store.rankings() if tasks[one.task].gold is None]
    assert [one.ranks for one in kept] == [(2, 2, 1, 2)] * 16  # whatever order it was shown in


def test_what_was_ranked_survives_the_server_and_goes_on(store: Store) -> None:
    form = begin(store, prompts=3)
    with page(store, form) as server:
        ann = server.annotator("ann")
        _, told = ann.ask("GET", "/api/question")
        _, told = ann.rank(told["question"], [1, 2, 3], comment="kept")
        second = told["question"]
    with Store(store.path) as again, page(again, form) as server:
        old = ann.cookie.replace(str(ann.port), str(server.port))  # of a server that is gone
        assert Annotator(server.port, "", old).ask("GET", "/api/question")[0] == 401
        ann = server.annotator("ann")
        _, told = ann.ask("GET", "/api/question")
        assert (told["question"]["id"], told["question"]["done"]) == (second["id"], 1)
        _, told = ann.ask("POST", "/api/undo")
        assert told["question"]["before"] == [1, 2, 3] and told["question"]["comment"] == "kept"
        assert ann.ask("POST", "/api/undo")[1]["error"]["message"] == "there is nothing to undo"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"verdict": "ranked", "ranks": [1, 2]}, 409),
        ({"verdict": "ranked", "ranks": [1, 2, 0]}, 422),
        ({"verdict": "ranked", "ranks": [1, 2, 99]}, 422),
        ({"verdict": "best"}, 422),
        ({"verdict": "bad", "annotator": "bob"}, 422),
        ({"verdict": "bad", "question": "0123"}, 409),
    ],
)
def test_what_is_no_ranking_is_refused(store: Store, said: dict[str, Any], status: int) -> None:
    with page(store, begin(store)) as server:
        ann = server.annotator("ann")
        _, told = ann.ask("GET", "/api/question")
        assert ann.ask("POST", "/api/ranking", {"question": told["question"]["id"]} | said)[0] == status
    assert store.rankings() == []


def test_answers_come_while_people_wait_and_a_failure_names_no_model(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "AT_ONCE", 1)
    found = Round([asked("one"), asked("two")], ["a"], 2, 1, Sampling())
    gate = threading.Event()

    class Gated(ScriptedEngine):
        def complete(self, *call: Any) -> Any:
            gate.wait(20)
            return super().complete(*call)

    from llmpipe.errors import TalkError

    engine = Gated(["x", "y", TalkError("runs/secret:ppo failed")], chats=False)
    round_id = store.begin_round(found.key, found.settings())
    form = type(begin(store))(round_id, ("overall",), {}, 2, 1)
    sampler = Sampler(store, round_id, found, {"a": engine})
    sampler.start()
    with page(store, form, sampler=sampler) as server:
        ann = server.annotator("ann")
        assert ann.ask("GET", "/api/question")[1]["state"] == "waiting"
        gate.set()
        sampler.join()
        _, told = ann.ask("GET", "/api/question")
        assert sorted(told["question"]["answers"]) == ["x", "y"] and told["question"]["of"] == 2
        assert told["trouble"] == "some answers could not be sampled; the terminal says why"
        assert "secret" not in json.dumps(ann.seen)
