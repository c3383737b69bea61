"""What the page asks for, under `/api/`: JSON, and an answer as JSON lines.

The app has on its state `engines` by name, `answers`, and `memory`, or None where nothing is to be kept; the page then
sends what was said before with each question. Who may ask is for the guard to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from llmpipe.errors import LlmpipeError, TalkError
from llmpipe.talk import attachments
from llmpipe.talk.deep_search import READ, SEARCH
from llmpipe.talk.engine import Engine
from llmpipe.talk.kit import Answer
from llmpipe.talk.memory import Memory
from llmpipe.talk.moderated import Moderated
from llmpipe.talk.records import Conversation, Stored
from llmpipe.talk.serve import page_answer, preferred
from llmpipe.talk.serve.consent import Desk
from llmpipe.talk.session import MODES
from llmpipe.talk.words import excerpt

EXCERPT_CHARS = 90

router = APIRouter(include_in_schema=False)


class File(BaseModel):
    """A text that comes with a question."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=200)
    text: str


class Said(BaseModel):
    """A turn of a conversation that only the page knows."""

    model_config = ConfigDict(extra="forbid")
    role: str = Field(pattern="^(user|assistant)$")
    content: str


class Question(BaseModel):
    """A question to one model, or to several at once with `compare`."""

    model_config = ConfigDict(extra="forbid")
    text: str = ""
    model: str
    compare: list[str] = Field([], max_length=8)
    mode: Literal["chat", "deep-search"] = "chat"
    conversation: int | None = None
    attachments: list[File] = Field([], max_length=8)
    history: list[Said] = []


class Consent(BaseModel):
    """What the user says to a question whether a tool may be called."""

    model_config = ConfigDict(extra="forbid")
    ask: str
    answer: Answer


class Title(BaseModel):
    """Another title for a conversation."""

    model_config = ConfigDict(extra="forbid")
    title: str = Field(min_length=1, max_length=500)


class Choice(BaseModel):
    """Which model's answer, of those side by side in a message, is the best."""

    model_config = ConfigDict(extra="forbid")
    conversation: int
    message: int
    chosen: str


class Thumb(BaseModel):
    """Whether a model's answer, in a message, is good."""

    model_config = ConfigDict(extra="forbid")
    conversation: int
    message: int
    model: str
    good: bool


@router.get("/api/state")
def state(request: Request) -> dict[str, Any]:
    """Return what there is: models, modes, conversations, and which files may be sent."""
    memory = _memory(request)
    with _as_http():
        return {
            "models": [
                {"name": name, "context": engine.context, "chats": engine.chats}
                for name, engine in _engines(request).items()
            ],
            "modes": [{"name": name, "missing": _missing(request, name)} for name in MODES],
            "memory": memory is not None,
            "moderated": any(isinstance(engine, Moderated) for engine in _engines(request).values()),
            "conversations": [_listed(one) for one in memory.conversations()] if memory else [],
            "files": {"suffixes": list(attachments.LANGUAGES), "max_bytes": attachments.MOST_BYTES},
        }


@router.get("/api/conversations/{conversation}")
def opened(request: Request, conversation: int) -> dict[str, Any]:
    """Return a conversation with its turns."""
    memory = _kept(request)
    with _as_http(404):
        known = memory.conversation(conversation)
        messages = memory.messages(conversation)
        thumbs = preferred.thumbs(memory, messages, known.model)
        turns = [_turn(one, known, thumbs) for one in messages if _shown(one)]
    return _listed(known) | {"turns": [one | {"is_last": one is turns[-1]} for one in turns]}


@router.patch("/api/conversations/{conversation}")
def renamed(request: Request, conversation: int, new: Title) -> dict[str, Any]:
    """Give a conversation another title."""
    memory = _kept(request)
    with _as_http(404):
        memory.rename(conversation, new.title)
        return _listed(memory.conversation(conversation))


@router.delete("/api/conversations/{conversation}")
def deleted(request: Request, conversation: int) -> dict[str, Any]:
    """Delete a conversation."""
    with _as_http(404):
        _kept(request).delete(conversation)
    return {"deleted": conversation}


@router.get("/api/search")
def found(request: Request, q: str) -> dict[str, Any]:
    """Return the conversations with the words in their title or in what was said, each with a part that has them."""
    memory = _kept(request)
    with _as_http():
        conversations = {one.id: one for one in memory.conversations(-1)}
        excerpts: dict[int, str] = {}
        for hit in memory.search(q, limit=50):
            excerpts.setdefault(hit.conversation, excerpt(hit.content, q, chars=EXCERPT_CHARS))
    for one in conversations.values():
        if q.casefold() in one.title.casefold():
            excerpts.setdefault(one.id, "")
    return {
        "conversations": [
            _listed(conversations[one]) | {"excerpt": part} for one, part in excerpts.items() if one in conversations
        ]
    }


@router.post("/api/say")
def say(request: Request, question: Question) -> StreamingResponse:
    """Answer: JSON lines with the conversation first, then pieces by model, and at last the id of what was kept.

    Who closes the connection stops the answer; what was said until then is kept.
    """
    engines = _engines(request)
    names = list(dict.fromkeys([question.model, *question.compare]))
    if unknown := [name for name in names if name not in engines]:
        raise HTTPException(404, f"no model {unknown[0]} is served; there are {', '.join(engines)}")
    if not question.text.strip() and not question.attachments:
        raise HTTPException(422, "there is no question")
    if question.mode != "chat" and (len(names) > 1 or _missing(request, question.mode)):
        missing = _missing(request, question.mode)
        raise HTTPException(422, missing or f"in the mode {question.mode} one model answers: compare none")
    with _as_http(422):
        files = [attachments.of(one.name, one.text.encode()) for one in question.attachments]
    with _as_http(409):
        turn = page_answer.begun(
            {name: engines[name] for name in names},
            _memory(request),
            question.conversation,
            question.text,
            files=files,
            history=[one.model_dump() for one in question.history],
        )
    turn.mode, turn.desk = question.mode, request.app.state.desk
    return StreamingResponse(page_answer.stream(turn, request.app.state.answers), media_type="application/x-ndjson")


@router.post("/api/consent")
def consent(request: Request, said: Consent) -> dict[str, Any]:
    """Let a tool be called, or not; returns whether it still waited."""
    desk: Desk | None = request.app.state.desk
    return {"waited": desk is not None and desk.answer(said.ask, said.answer)}


@router.post("/api/prefer")
def prefer(request: Request, choice: Choice) -> dict[str, Any]:
    """Keep which answer is better: the conversation goes on with it, and `llmpipe rank` exports it for `reward`."""
    memory = _kept(request)
    with _as_http(409):
        message, file = preferred.kept(memory, choice.conversation, choice.message, choice.chosen)
    return {"message": message, "file": str(file)}


@router.post("/api/thumb")
def thumb(request: Request, given: Thumb) -> dict[str, Any]:
    """Keep whether an answer is good; `llmpipe rank` exports it for `kto`."""
    memory = _kept(request)
    with _as_http(409):
        file = preferred.thumb(memory, given.conversation, given.message, given.model, is_good=given.good)
    return {"file": str(file)}


def _missing(request: Request, mode: str) -> str | None:
    """Return what a mode lacks."""
    desk: Desk | None = request.app.state.desk
    if mode == "chat" or (desk is not None and desk.searches):
        return None
    return f"llmpipe serve … --tools {SEARCH},{READ} lets it search the web"


def _engines(request: Request) -> Mapping[str, Engine]:
    engines: Mapping[str, Engine] = request.app.state.engines
    return engines


def _memory(request: Request) -> Memory | None:
    memory: Memory | None = request.app.state.memory
    return memory


def _kept(request: Request) -> Memory:
    if (memory := _memory(request)) is None:
        raise HTTPException(409, "nothing is kept: llmpipe serve was started with --no-memory")
    return memory


@contextmanager
def _as_http(status: int = 503) -> Iterator[None]:
    """Tell what went wrong; `status` is for what the page asked of memory or model and cannot have."""
    try:
        yield
    except LlmpipeError as error:
        raise HTTPException(status if isinstance(error, TalkError) else 503, page_answer.told(error)) from error


def _listed(one: Conversation) -> dict[str, Any]:
    return {"id": one.id, "title": one.title or "Untitled", "model": one.model, "when": one.when}


def _shown(one: Stored) -> bool:
    is_step = "tool_calls" in one.message
    return one.role in ("user", "assistant") and not is_step and bool(one.content or one.page)


def _turn(one: Stored, conversation: Conversation, thumbs: Mapping[tuple[int, str], bool]) -> dict[str, Any]:
    """What the page shows of a message; one from elsewhere, such as `llmpipe chat`, has no `page`."""
    if one.role == "user":
        return {"role": "user", "text": one.page.get("text", one.content), "files": one.page.get("files", [])}
    answers = one.page.get("answers") or [{"model": conversation.model, "text": one.content}]
    found = {model: is_good for (message, model), is_good in thumbs.items() if message == one.id}
    choice = {"preferred": one.page.get("preferred"), "thumbs": found}
    return {"role": "assistant", "message": one.id, "answers": answers} | choice
