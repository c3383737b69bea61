"""The app: what it holds, its routes, and how failures leave it.

`app.state` has `engines`, `memory`, `desk`, `limits`, `signin`, `answers`, `metrics` and `begun`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from llmpipe.errors import TalkError
from llmpipe.talk.engine import Engine
from llmpipe.talk.kit import Kit
from llmpipe.talk.memory import Memory
from llmpipe.talk.serve import openai_api, page_api
from llmpipe.talk.serve.answers import Answers
from llmpipe.talk.serve.consent import Desk
from llmpipe.talk.serve.guard import LOOPBACK, Guard, Limits, Refused, Signin, cookie_name
from llmpipe.talk.serve.metrics import Metrics

STATIC = Path(__file__).with_name("static")


def create_app(
    engines: Mapping[str, Engine],
    *,
    memory: Memory | None,
    limits: Limits,
    token: str,
    hosts: Collection[str] = LOOPBACK,
    kit: Kit | None = None,
) -> FastAPI:
    """Make the app; who starts it closes the engines, the memory and the tools of the kit, which are for the page."""
    # no pages about the API: they load scripts from other hosts
    app = FastAPI(title="llmpipe", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    state = app.state
    state.engines, state.memory, state.limits, state.begun = dict(engines), memory, limits, int(time.time())
    state.desk = None if kit is None else Desk(kit)
    state.signin, state.metrics, state.answers = Signin(), Metrics(), Answers(limits.running)
    app.add_middleware(Guard, token=token, hosts=hosts, limits=limits, signin=state.signin, metrics=state.metrics)
    for kind in (Refused, TalkError, HTTPException, Exception):
        app.add_exception_handler(kind, _failed)
    app.include_router(openai_api.router)
    app.include_router(page_api.router)
    app.add_api_route("/signin", sign_in, methods=["GET"])
    app.add_api_route("/", _page, methods=["GET"])
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.answers.close()


async def sign_in(request: Request, code: str = "") -> Response:
    """Change a one-time code for a cookie, and go to the page."""
    session = request.app.state.signin.begin(code)
    if session is None:
        return PlainTextResponse("This link was used before, or is not of this server.\n", 403)
    response = RedirectResponse("/", 303)
    name = cookie_name(request.headers["host"])
    response.set_cookie(name, session, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return response


async def _page() -> Response:
    return FileResponse(STATIC / "index.html")


async def _failed(_: Request, failure: Exception) -> Response:
    """Answer with OpenAI's error format."""
    if isinstance(failure, HTTPException):
        failure = Refused(failure.status_code, str(failure.detail))
    refused = openai_api.refusal_of(failure)
    return Response(json.dumps(refused.body), refused.status, refused.headers, "application/json")
