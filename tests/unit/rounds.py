"""A round of ranking by scripted models, and its page on a port of its own."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llmpipe.ranking.asking import Form
from llmpipe.ranking.page.app import create_app
from llmpipe.ranking.records import Answer, Asked
from llmpipe.ranking.store import Store
from llmpipe.talk.serve.guard import Limits
from tests.unit.served import listening

MODELS = ("runs/secret:base", "runs/secret:ppo")


def asked(text: str) -> Asked:
    return Asked([{"role": "user", "content": text}], text)


def begin(
    store: Store, *, prompts: int = 3, count: int = 3, gold: int = 0, criteria: Sequence[str] = ("overall",)
) -> Form:
    """Keep a round whose answers are `PROMPT.PLACE`, the models taking turns, and gold questions, good and bad."""
    round_id = store.begin_round(f"{prompts} {count}", {"criteria": list(criteria)})
    for place in range(prompts):
        answers = [Answer(f"answer {place}.{n}", (MODELS[(place + n) % 2],)) for n in range(count)]
        store.add_task("rank", asked(f"question {place}"), answers, round_id=round_id, place=place)
    for place in range(gold):
        texts = ("a bad one", "a good one")
        answers = [Answer(f"{text} {place}", ()) for text in texts]
        store.add_task("gold", asked(f"gold {place}"), answers, round_id=round_id, place=place, gold={"": [(1, 0)]})
    return Form(round_id, tuple(criteria), dict.fromkeys(criteria, "Be fair."), prompts, seed=7)


@dataclass
class Annotator:
    """A browser as the page's API sees it: a cookie, and the origin that browsers send; `seen` is all it was told."""

    port: int
    code: str
    cookie: str = ""
    seen: list[str] = field(default_factory=list)

    def sign_in(self) -> int:
        reply, _ = self.raw("GET", f"/signin?code={self.code}")
        self.cookie = (reply.headers.get("Set-Cookie") or "").partition(";")[0]
        return reply.status

    def ask(self, method: str, path: str, content: Any = None) -> tuple[int, Any]:
        reply, text = self.raw(method, path, content)
        return reply.status, json.loads(text)

    def raw(self, method: str, path: str, content: Any = None, **more: str) -> tuple[http.client.HTTPResponse, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json", **more}
        if self.cookie:
            headers["Cookie"] = self.cookie
        connection.request(method, path, None if content is None else json.dumps(content), headers)
        reply = connection.getresponse()
        text = reply.read().decode()
        self.seen.append(f"{reply.headers}{text}")
        connection.close()
        return reply, text

    def rank(self, question: Any, ranks: Sequence[int] | None, **more: Any) -> tuple[int, Any]:
        said = {"question": question["id"], "verdict": "ranked", "ranks": ranks and list(ranks)} | more
        return self.ask("POST", "/api/ranking", said)


@dataclass
class Page:
    """The page, served."""

    port: int
    app: Any

    def annotator(self, name: str) -> Annotator:
        """Someone who opened a link."""
        made = Annotator(self.port, self.app.state.signin.code_for(name))
        assert made.sign_in() == 303
        return made

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def link(self, name: str) -> str:
        return f"{self.url}/signin?code={self.app.state.signin.code_for(name)}"


@contextmanager
def page(store: Store, form: Form, **settings: Any) -> Iterator[Page]:
    """Serve the page until the block ends."""
    app = create_app(store, form, limits=Limits(grace_s=1, burst=10_000), **settings)
    with listening(app) as port:
        yield Page(port, app)
