"""OpenAI's HTTP API: `/v1/chat/completions`, `/v1/completions`, `/v1/models`; and `/health`, `/metrics`.

Fields and errors are those of https://platform.openai.com/docs/api-reference, so that its clients work unchanged.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from llmpipe.errors import TalkError
from llmpipe.moderation.moderator import Refusal
from llmpipe.talk.calls import unread_as_text
from llmpipe.talk.engine import Engine, Piece
from llmpipe.talk.serve.asked import Asked, ChatAsked, TextAsked, read
from llmpipe.talk.serve.guard import Refused

router = APIRouter()
Shape = Callable[[Piece, bool], dict[str, Any]]
"""A piece as a choice of a chunk; the flag is set for the first one."""


class EventStream(StreamingResponse):
    """Server-sent events; they and the pieces they are made of are closed at the end, also when the client has gone."""

    def __init__(self, events: AsyncGenerator[str, None], pieces: AsyncGenerator[Any, None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._events, self._pieces = events, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        async with aclosing(self._pieces), aclosing(self._events):
            await super().__call__(scope, receive, send)


@router.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    """Answer a conversation."""
    asked = read(ChatAsked, await request.body())
    engine = engine_of(request.app.state.engines, asked.model)
    if not engine.chats:
        message = f"{engine.name} knows no turns, it only continues texts: use /v1/completions"
        raise Refused(400, message, param="model", code="model_not_supported")
    messages, tools = [turn.message() for turn in asked.messages], asked.offered()

    def begin() -> Iterator[Piece]:
        try:
            room = engine.context - (taken := engine.count(messages, tools))
        except TalkError as failure:  # the template refuses the roles, or their order
            raise Refused(400, str(failure), param="messages", code="invalid_value") from None
        if room < 1:
            raise _too_long(engine, taken, "messages")
        return unread_as_text(engine.chat(messages, asked.sampling(room), tools))

    return await _Reply(request, asked, engine.name, begin, "chat.completion").response()


@router.post("/v1/completions")
async def complete(request: Request) -> Response:
    """Continue a text."""
    asked = read(TextAsked, await request.body())
    engine = engine_of(request.app.state.engines, asked.model)

    def begin() -> Iterator[Piece]:
        try:
            yield from engine.complete(asked.text, asked.sampling(engine.context))
        except TalkError:
            # engines count conversations; a text is counted only once it is known to be in vain
            taken = engine.count([{"role": "user", "content": asked.text}])
            if taken >= engine.context:
                raise _too_long(engine, taken, "prompt") from None
            raise

    return await _Reply(request, asked, engine.name, begin, "text_completion").response()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """List the models."""
    return {"object": "list", "data": [_model(request, name) for name in request.app.state.engines]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """Show one of them."""
    return _model(request, engine_of(request.app.state.engines, name).name)


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """Tell whether requests are served."""
    ending = request.app.state.answers.is_ending
    return JSONResponse({"status": "ending" if ending else "ok"}, 503 if ending else 200)


@router.get("/metrics")
async def metrics(request: Request) -> PlainTextResponse:
    """Show what the server did since it began, for Prometheus."""
    state = request.app.state
    text = state.metrics.text(running=state.answers.running, queued=state.answers.queued)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def engine_of(engines: Mapping[str, Engine], name: str | None) -> Engine:
    """Return the engine of that name; where there is only one, no name is needed.

    Raises:
        Refused: there is none.
    """
    if name is None and len(engines) == 1:
        return next(iter(engines.values()))
    known = ", ".join(engines)
    if name is None:
        raise Refused(400, f"model is missing; there are {known}", param="model", code="missing_required_parameter")
    if name not in engines:
        message = f"the model {name} does not exist; there is {known}"
        raise Refused(404, message, param="model", code="model_not_found")
    return engines[name]


def refusal_of(failure: Exception) -> Refused:
    """Return what a client is told of a failure."""
    if isinstance(failure, Refused):
        return failure
    if isinstance(failure, Refusal):
        return Refused(400, str(failure), code="content_filter")
    if isinstance(failure, TalkError):
        return Refused(503 if "shutting down" in str(failure) else 502, str(failure), code="model_failed")
    return Refused(500, "the server failed; its log says why")


def _too_long(engine: Engine, taken: int, param: str) -> Refused:
    message = f"the prompt has {taken:,} tokens, and {engine.name} sees {engine.context:,} at once, its answer included"
    return Refused(400, message, param=param, code="context_length_exceeded")


def _model(request: Request, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": request.app.state.begun, "owned_by": "llmpipe"}


class _Reply:
    """One answer on its way: whole, or as a stream."""

    def __init__(
        self, request: Request, asked: Asked, model: str, begin: Callable[[], Iterator[Piece]], kind: str
    ) -> None:
        self._request, self._asked, self._begin = request, asked, begin
        self._is_chat = kind == "chat.completion"
        prefix = "chatcmpl" if self._is_chat else "cmpl"
        self._head = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._kind = kind
        self._arrived = time.monotonic()

    async def response(self) -> Response:
        """Answer; what is wrong before the first piece has a status of its own."""
        pieces = self._counted()
        if not self._asked.stream:
            whole = await unless_gone(self._request, self._whole(pieces))
            return Response(json.dumps(whole), media_type="application/json")
        first = await unless_gone(self._request, anext(pieces, Piece("", "stop")))
        return EventStream(self._events(first, pieces), pieces)

    async def _counted(self) -> AsyncGenerator[Piece, None]:
        """Yield the pieces, and count them for `/metrics`."""
        metrics, waits = self._request.app.state.metrics, True
        async with aclosing(self._request.app.state.answers.of(self._begin)) as pieces:
            async for piece in pieces:
                if waits and (piece.text or piece.tool_calls):
                    metrics.count_first_token(time.monotonic() - self._arrived)
                    waits = False
                if piece.usage:
                    metrics.count_tokens(prompt=piece.usage.prompt_tokens, answer=piece.usage.answer_tokens)
                yield piece

    async def _whole(self, pieces: AsyncGenerator[Piece, None]) -> dict[str, Any]:
        async with aclosing(pieces):
            told = [piece async for piece in pieces] or [Piece("", "stop")]
        text = "".join(piece.text for piece in told)
        calls = [call for piece in told for call in piece.tool_calls]
        finish = next((piece.finish for piece in reversed(told) if piece.finish), "stop")
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self._is_chat:
            choice["message"] = {"role": "assistant", "content": text or (None if calls else "")}
            choice["message"] |= {"tool_calls": calls} if calls else {}
        else:
            choice["text"] = text
        return {**self._head, "object": self._kind, "choices": [choice], "usage": _usage(told[-1])}

    async def _events(self, first: Piece, pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[str, None]:
        if self._is_chat:
            yield self._chunk([self._choice({"role": "assistant", "content": ""}, None)])
        last, calls = first, len(first.tool_calls)
        yield self._chunk([self._piece(first, 0)])
        try:
            async for last in pieces:
                yield self._chunk([self._piece(last, calls)])
                calls += len(last.tool_calls)
        except Exception as failure:
            yield event(refusal_of(failure).body)
            if not isinstance(failure, Refused | TalkError):
                raise
            return
        if self._asked.wants_usage:
            yield self._chunk([], usage=_usage(last))
        yield "data: [DONE]\n\n"

    def _piece(self, piece: Piece, calls: int) -> dict[str, Any]:
        if not self._is_chat:
            return {"index": 0, "text": piece.text, "finish_reason": piece.finish, "logprobs": None}
        delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
        if piece.tool_calls:
            delta["tool_calls"] = [{"index": calls + i, **call} for i, call in enumerate(piece.tool_calls)]
        return self._choice(delta, piece.finish)

    def _choice(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> str:
        kind = "chat.completion.chunk" if self._is_chat else self._kind
        more = {"usage": usage} if self._asked.wants_usage else {}
        return event({**self._head, "object": kind, "choices": choices, **more})


def event(content: Mapping[str, Any]) -> str:
    """Write one server-sent event; only ASCII, so that no terminal escape of a model passes through a bare curl."""
    return f"data: {json.dumps(content)}\n\n"


def _usage(last: Piece) -> dict[str, Any] | None:
    if last.usage is None:
        return None
    prompt, answer = last.usage.prompt_tokens, last.usage.answer_tokens
    cached = {"cached_tokens": last.usage.cached}
    total = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return {**total, "prompt_tokens_details": cached}


async def unless_gone(request: Request, work: Any) -> Any:
    """Wait for some work, and give it up when the client goes away.

    Raises:
        Refused: the client has gone, and will not see it.
    """
    job, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return job.result()
        raise Refused(499, "the client has gone")
    finally:
        gone.cancel()
        job.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
