"""The app: what the page asks for, under `/api/`. No model's name leaves it; the tests look for them in all it says.

`app.state` has `store`, `form`, `sampler`, `signin`, `answers` and `limits`.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from llmpipe.errors import LlmpipeError, TalkError
from llmpipe.ranking.asking import Asking, Form, Question
from llmpipe.ranking.page.links import Links
from llmpipe.ranking.records import MOST
from llmpipe.ranking.sampling import Sampler
from llmpipe.ranking.store import Store
from llmpipe.talk.serve.answers import Answers
from llmpipe.talk.serve.app import STATIC as SHARED
from llmpipe.talk.serve.app import sign_in
from llmpipe.talk.serve.guard import LOOPBACK, Guard, Limits, Refused, cookie_name
from llmpipe.talk.serve.metrics import Metrics

STATIC = Path(__file__).with_name("static")
Rank = Annotated[int, Field(ge=1, le=MOST)]


class Said(BaseModel):
    """What an annotator says of a question; `ranks` are those of its answers as they are shown."""

    model_config = ConfigDict(extra="forbid")
    question: str = Field(max_length=64)
    verdict: Literal["ranked", "bad", "skipped"]
    ranks: list[Rank] | None = Field(None, max_length=MOST)
    comment: str = Field("", max_length=10_000)
    seconds: float | None = Field(None, ge=0)


def create_app(
    store: Store,
    form: Form,
    *,
    sampler: Sampler | None = None,
    limits: Limits = Limits(),  # noqa: B008  (frozen)
    hosts: Collection[str] = LOOPBACK,
) -> FastAPI:
    """Make the app; who starts it closes the store and ends the sampler."""
    app = FastAPI(title="llmpipe", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    state = app.state
    state.store, state.form, state.sampler, state.limits = store, form, sampler, limits
    state.signin, state.answers, state.asking = Links(), Answers(1), {}
    state.lock = threading.Lock()
    token = secrets.token_urlsafe(32)  # told to nobody: who ranks comes by a link
    app.add_middleware(Guard, token=token, hosts=hosts, limits=limits, signin=state.signin, metrics=Metrics())
    for kind in (LlmpipeError, HTTPException, Exception):
        app.add_exception_handler(kind, _failed)
    app.add_api_route("/signin", sign_in, methods=["GET"])
    app.add_api_route("/", _page, methods=["GET"])
    app.add_api_route("/api/question", question, methods=["GET"])
    app.add_api_route("/api/ranking", keep, methods=["POST"])
    app.add_api_route("/api/undo", undo, methods=["POST"])
    app.mount("/static", StaticFiles(directory=SHARED))
    app.mount("/rank", StaticFiles(directory=STATIC))
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.answers.close()


def question(request: Request) -> dict[str, Any]:
    """Return the annotator's next question."""
    with request.app.state.lock:
        asking = _asking(request)
        return _told(request, asking, asking.next())


def keep(request: Request, said: Said) -> dict[str, Any]:
    """Keep what the annotator says, and return the next question: by then it is on the disk."""
    with request.app.state.lock:
        asking = _asking(request)
        asking.keep(said.question, said.verdict, said.ranks, comment=said.comment, seconds=said.seconds)
        return _told(request, asking, asking.next())


def undo(request: Request) -> dict[str, Any]:
    """Take the annotator's newest ranking back, and return its question with what was said."""
    with request.app.state.lock:
        asking = _asking(request)
        before = asking.undo()
        if before is None:
            raise TalkError("there is nothing to undo")
        return _told(request, asking, before)


def _told(request: Request, asking: Asking, found: Question | None) -> dict[str, Any]:
    """What the page is told: a question, or whether one will come."""
    sampler: Sampler | None = request.app.state.sampler
    samples = sampler is not None and sampler.is_alive()
    state = "asked" if found else "waiting" if samples and asking.is_waiting else "done"
    told = {"annotator": asking.annotator, "state": state, "question": asdict(found) if found else None}
    # why a model fails may name it
    failed = sampler is not None and sampler.failure is not None
    return told | {"trouble": "some answers could not be sampled; the terminal says why" if failed else None}


def _asking(request: Request) -> Asking:
    state = request.app.state
    session = request.cookies[cookie_name(request.headers["host"])]  # the guard knows it
    annotator = state.signin.annotator(session)
    if annotator not in state.asking:
        state.asking[annotator] = Asking(state.store, state.form, annotator)
    asking: Asking = state.asking[annotator]
    return asking


async def _page() -> Response:
    return FileResponse(STATIC / "index.html")


async def _failed(_: Request, failure: Exception) -> Response:
    """Answer as serve does, so that its page's scripts read it."""
    if isinstance(failure, HTTPException):
        refused = Refused(failure.status_code, str(failure.detail))
    elif isinstance(failure, TalkError):
        refused = Refused(409, str(failure))
    else:
        refused = Refused(503, str(failure) if isinstance(failure, LlmpipeError) else "the server failed")
    return Response(json.dumps(refused.body), refused.status, refused.headers, "application/json")
