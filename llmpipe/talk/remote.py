"""A server that speaks OpenAI's API: `llmpipe serve`, `transformers serve`, vLLM, SGLang, llama.cpp and others.

It is never followed to another address, for the key would go along.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import SplitResult, urlsplit

from llmpipe.errors import TalkError, UsageError, did_you_mean
from llmpipe.server import message_of
from llmpipe.talk.engine import Finish, Message, Piece, Sampling, Usage

CONTEXT = 4096
"""Taken where a server does not say how many tokens its model sees."""
CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for English; a server's tokenizer is not here to count with."""
TIMEOUT_S = 600.0
LOOK_S = 10.0
"""How long a server may take to say what models it has."""
LONGEST_LINE = 2**20
FINISHES: dict[str, Finish] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}


class RemoteEngine:
    """A model behind an address such as `http://127.0.0.1:8000/v1`; each answer has a connection of its own."""

    chats = True

    def __init__(self, url: str, model: str | None, *, key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """Ask the server what models it has.

        Raises:
            TalkError: the server is away, wants another key, or does not have the model.
            UsageError: the address is none, or there are several models and none is named.
        """
        self.url, self.key, self.timeout_s = url.rstrip("/"), key, timeout_s
        self.parts = _address(self.url)
        listed = self._models()
        self.name = self._named(model, [str(entry.get("id")) for entry in listed])
        own = next((entry for entry in listed if entry.get("id") == self.name), {})
        said = own.get("max_model_len") or own.get("context_length") or (own.get("meta") or {}).get("n_ctx_train")
        self.context = said if isinstance(said, int) and said > 0 else CONTEXT

    def count(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> int:
        """Estimate how many tokens a conversation has as a prompt: a quarter of its characters, and four a turn."""
        texts = [json.dumps(message.get("content"), ensure_ascii=False) for message in messages]
        texts += [json.dumps(calls) for message in messages if (calls := message.get("tool_calls"))]
        texts += [json.dumps(tool) for tool in tools]
        return sum(map(len, texts)) // CHARACTERS_PER_TOKEN + 4 * len(messages)

    def chat(self, messages: Sequence[Message], how: Sampling, tools: Sequence[Message] = ()) -> Iterator[Piece]:
        """Answer a conversation.

        Raises:
            TalkError: the server refuses, fails or goes away.
        """
        asked = self._asked(how) | {"messages": list(messages)} | ({"tools": list(tools)} if tools else {})
        return self._pieces("/chat/completions", asked)

    def complete(self, text: str, how: Sampling) -> Iterator[Piece]:
        """Continue a text.

        Raises:
            TalkError: as above.
        """
        return self._pieces("/completions", self._asked(how) | {"prompt": text})

    def close(self) -> None:
        """Do nothing: connections end with their answers."""

    def _asked(self, how: Sampling) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "model": self.name,
            "max_tokens": how.max_new_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if how.seed is not None:
            asked["seed"] = how.seed
        if how.stop:
            asked["stop"] = [*how.stop]
        return asked

    def _models(self) -> list[dict[str, Any]]:
        with closing(self._connection(LOOK_S)) as connection:
            reply = self._reply(connection, "GET", "/models", None)
            if reply.status == 404:  # it has none to list, and may answer all the same
                return []
            try:
                found = json.loads(self._checked(reply).read())["data"]
                return [entry for entry in found if isinstance(entry, dict)]
            except (ValueError, KeyError, TypeError) as error:
                raise TalkError(
                    f"{self.url} does not list models as OpenAI's API does", hint="an address often ends in /v1"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                raise self._away(error) from error

    def _named(self, model: str | None, listed: list[str]) -> str:
        if model is None:
            if len(listed) == 1:
                return listed[0]
            there = f"it has {', '.join(listed[:8])}" if listed else "it lists none"
            raise UsageError(f"which model of {self.url}? {there}", hint=f"{self.url}#MODEL")
        if listed and model not in listed:
            near = did_you_mean(model, listed)
            raise TalkError(f"{self.url} has no model {model}{near}", hint=f"it has {', '.join(listed[:8])}")
        return model

    def _pieces(self, path: str, asked: dict[str, Any]) -> Iterator[Piece]:
        started = time.monotonic()
        with closing(self._connection(self.timeout_s)) as connection:
            reply = self._checked(self._reply(connection, "POST", path, asked))
            answer = _Answer()
            try:
                for content in _events(reply):
                    if text := answer.take(content):
                        yield Piece(text)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise TalkError(f"{self.url} sent what is no answer in OpenAI's API: {error}", hint=_HINT) from error
            except TimeoutError as error:
                seconds = time.monotonic() - started
                raise TalkError(f"{self.url} has said nothing more after {seconds:,.0f} s", hint=_HINT) from error
            except (OSError, http.client.HTTPException) as error:
                raise TalkError(f"{self.url} broke off in the middle of an answer: {error}", hint=_HINT) from error
        if answer.finish is None:
            raise TalkError(f"{self.url} broke off in the middle of an answer", hint=_HINT)
        yield Piece("", answer.finish, answer.usage(), tuple(answer.calls[place] for place in sorted(answer.calls)))

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        return kind(self.parts.netloc, timeout=timeout_s)

    def _reply(
        self, connection: http.client.HTTPConnection, method: str, path: str, content: dict[str, Any] | None
    ) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        body = None if content is None else json.dumps(content).encode()
        try:
            connection.request(method, self.parts.path + path, body=body, headers=headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self._away(error) from error

    def _away(self, error: Exception) -> TalkError:
        return TalkError(f"{self.url} cannot be reached: {error}", hint="is the server up, and the address right?")

    def _checked(self, reply: http.client.HTTPResponse) -> http.client.HTTPResponse:
        """Return a reply that is an answer, or raise TalkError that says what to do about it."""
        if reply.status == 200:
            return reply
        said = message_of(reply.read(LONGEST_LINE).decode(errors="replace"))
        wait = reply.headers.get("Retry-After")
        hints = {
            401: "is the key right? --key-variable names the environment variable that holds it",
            403: "is the key right, and may it use this model?",
            404: f"is the model's name right? {self.url}#MODEL",
            429: f"ask again in {wait} s" if wait else "ask again later",
        }
        if 300 <= reply.status < 400:
            hints[reply.status] = f"give that address itself: {reply.headers.get('Location', 'it names none')}"
            said = "it sends us elsewhere, where we do not follow"
        raise TalkError(f"{self.url} answers {reply.status}: {said}", hint=hints.get(reply.status, _HINT))


def _address(url: str) -> SplitResult:
    """Take an address apart; a key has its own way, and is no part of it."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc:
            return parts
    except ValueError:  # a port that is no number
        pass
    raise UsageError(f"{url} is no address of a server", hint="http(s)://HOST:PORT/v1#MODEL")


_HINT = "the server's own log says more"


class _Answer:
    """What a stream has said so far."""

    def __init__(self) -> None:
        self.finish: Finish | None = None
        self.calls: dict[int, dict[str, Any]] = {}
        self.used: dict[str, Any] | None = None

    def take(self, content: dict[str, Any]) -> str:
        """Read an event and return the text that it adds."""
        if "error" in content:
            raise TalkError(f"the server failed: {message_of(json.dumps(content))}", hint=_HINT)
        self.used = content.get("usage") or self.used
        if not (choices := content.get("choices")):
            return ""  # the last one may be of usage alone
        choice = choices[0]
        delta = choice.get("delta") or {}
        for call in delta.get("tool_calls") or ():
            self._call(call)
        if reason := choice.get("finish_reason"):
            self.finish = FINISHES.get(reason, "stop")
        return str(choice.get("text") or delta.get("content") or "")

    def _call(self, part: dict[str, Any]) -> None:
        """Add to a tool call: name and id come once, the arguments bit by bit."""
        call = self.calls.setdefault(
            part.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = part.get("id") or call["id"]
        function = part.get("function") or {}
        call["function"]["name"] = function.get("name") or call["function"]["name"]
        call["function"]["arguments"] += function.get("arguments") or ""

    def usage(self) -> Usage | None:
        """Return what the server says that the answer took; None where it says nothing."""
        if not self.used:
            return None
        cached = (self.used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Usage(self.used.get("prompt_tokens") or 0, self.used.get("completion_tokens") or 0, cached)


def _events(reply: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Read server-sent events, whose data is JSON, up to `[DONE]` or the end."""
    while line := reply.readline(LONGEST_LINE):
        field, _, value = line.decode("utf-8").rstrip("\r\n").partition(":")
        if field != "data":
            continue
        value = value.removeprefix(" ")
        if value.strip() == "[DONE]":
            return
        yield json.loads(value)
