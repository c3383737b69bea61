"""A server behind an address: what it says arrives as pieces, and whatever goes wrong as one line with a hint."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llmpipe.errors import TalkError, UsageError
from llmpipe.talk.engine import Piece, Sampling, Usage
from llmpipe.talk.opening import opened
from llmpipe.talk.remote import RemoteEngine

ASK = [{"role": "user", "content": "hi"}]
END = b"data: [DONE]\n\n"


class Stub:
    """A server that answers with what a test puts here, and remembers what it was asked."""

    def __init__(self) -> None:
        self.models: Any = [{"id": "m", "max_model_len": 99}]
        self.status, self.headers, self.body = 200, {}, b""
        self.asked: list[tuple[str, dict[str, Any], Any]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stub.asked.append((self.path, dict(self.headers), None))
                self.answer(200, {}, json.dumps({"data": stub.models}).encode())

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.asked.append((self.path, dict(self.headers), content))
                self.answer(stub.status, stub.headers, stub.body)

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def says(self, *events: Any, end: bytes = END) -> None:
        self.body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + end

    def answers(self) -> list[Piece]:
        return list(RemoteEngine(self.url, "m").chat(ASK, Sampling()))


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server that is gone after the test."""
    one = Stub()
    yield one
    one.server.shutdown()
    one.server.server_close()


def delta(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def test_an_answer_comes_piece_by_piece(stub: Stub) -> None:
    used = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}}
    stub.says(delta(role="assistant"), delta(content="Grüß"), delta(content=" dich"), delta("length"))
    stub.body = (
        b": a comment\n\n"
        + stub.body.replace(END, b"")
        + b"data:"
        + json.dumps({"usage": used}).encode()
        + b"\n\n"
        + END
    )
    assert stub.answers() == [Piece("Grüß"), Piece(" dich"), Piece("", "length", Usage(7, 2, 5))]


def test_what_is_asked(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "secret")
    stub.says({"choices": [{"text": "more", "finish_reason": "stop"}]})
    with opened(f"{stub.url}#m", key_variable="THE_KEY") as engine:
        assert (engine.name, engine.context) == ("m", 99)
        list(engine.chat(ASK, Sampling(5, 0.5, 0.9, 3, ("END",)), [{"type": "function"}]))
        assert [piece.text for piece in engine.complete("once", Sampling())] == ["more", ""]
    (_, listed, _), (path, headers, chat), (other, _, plain) = stub.asked
    assert listed["Authorization"] == headers["Authorization"] == "Bearer secret"
    assert (path, other) == ("/v1/chat/completions", "/v1/completions") and plain["prompt"] == "once"
    wanted = {"model": "m", "messages": ASK, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 3}
    assert chat.items() >= (wanted | {"stop": ["END"], "tools": [{"type": "function"}], "stream": True}).items()
    assert not plain.keys() & {"seed", "stop", "tools"}


def test_tool_calls_are_put_together(stub: Stub) -> None:
    stub.says(
        delta(tool_calls=[{"index": 1, "id": "b", "function": {"name": "other", "arguments": ""}}]),
        delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "search", "arguments": '{"q"'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ': "duck"}'}}]),
        delta("tool_calls"),
    )
    (end,) = stub.answers()
    assert end.finish == "tool_calls"
    assert [call["function"] for call in end.tool_calls] == [
        {"name": "search", "arguments": '{"q": "duck"}'},
        {"name": "other", "arguments": ""},
    ]
    assert [call["id"] for call in end.tool_calls] == ["a", "b"]


@pytest.mark.parametrize(
    ("status", "headers", "message", "hint"),
    [
        (401, {}, "answers 401: no", "is the key right? --key-variable names the environment variable that holds it"),
        (404, {}, "answers 404: no", "is the model's name right? {url}#MODEL"),
        (429, {"Retry-After": "7"}, "answers 429: no", "ask again in 7 s"),
        (500, {}, "answers 500: no", "the server's own log says more"),
        (
            307,
            {"Location": "http://else.where/v1"},
            "answers 307: it sends us elsewhere, where we do not follow",
            "give that address itself: http://else.where/v1",
        ),
    ],
)
def test_refusals(stub: Stub, status: int, headers: dict[str, str], message: str, hint: str) -> None:
    stub.status, stub.headers, stub.body = status, headers, b'{"error": {"message": "no"}}'
    with pytest.raises(TalkError) as caught:
        stub.answers()
    assert (str(caught.value), caught.value.hint) == (f"{stub.url} {message}", hint.format(url=stub.url))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n', "broke off in the middle of an answer"),
        (b"data: {cut\n\n", "sent what is no answer in OpenAI's API"),
        (b"data: 5\n\n", "sent what is no answer in OpenAI's API"),
        (b'data: {"choices": ["x"]}\n\n', "sent what is no answer in OpenAI's API"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', "the server failed: out of memory"),
    ],
)
def test_streams_that_go_wrong(stub: Stub, body: bytes, message: str) -> None:
    stub.body = body
    with pytest.raises(TalkError, match=message):
        stub.answers()


def test_a_silent_server_is_waited_for_only_so_long(stub: Stub) -> None:
    engine = RemoteEngine(stub.url, "m", timeout_s=0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, says nothing
        engine.parts = engine.parts._replace(netloc=f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(TalkError, match="cannot be reached: timed out"):
            list(engine.chat(ASK, Sampling()))


@pytest.mark.parametrize(
    ("models", "name", "message", "hint"),
    [
        (["a", "b"], None, "which model of {url}? it has a, b", "{url}#MODEL"),
        ([], None, "which model of {url}? it lists none", "{url}#MODEL"),
        (["llama", "b"], "lama", "{url} has no model lama, did you mean llama?", "it has llama, b"),
    ],
)
def test_models_that_are_not_clear(stub: Stub, models: list[str], name: str | None, message: str, hint: str) -> None:
    stub.models = [{"id": model} for model in models]
    with pytest.raises((UsageError, TalkError)) as caught:
        RemoteEngine(stub.url, name)
    assert (str(caught.value), caught.value.hint) == (message.format(url=stub.url), hint.format(url=stub.url))


def test_an_only_model_needs_no_name_and_a_context_that_is_not_told_is_taken_as_4096(stub: Stub) -> None:
    stub.models = [{"id": "only"}]
    engine = RemoteEngine(stub.url, None)
    assert (engine.name, engine.context) == ("only", 4096)
    assert engine.count([{"role": "user", "content": "x" * 400}]) == 104


def test_no_server_and_no_address() -> None:
    with pytest.raises(TalkError, match=r"http://127.0.0.1:9/v1 cannot be reached: .*refused"):
        RemoteEngine("http://127.0.0.1:9/v1", "m")
    for url in ("http://", "http://host:port/v1", "http://key@host/v1"):
        with pytest.raises(UsageError, match="is no address of a server"):
            RemoteEngine(url, "m")


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    with (
        pytest.raises(UsageError, match="the environment variable NO_KEY is not set"),
        opened("http://127.0.0.1:9/v1#m", key_variable="NO_KEY"),
    ):
        pass
    with pytest.raises(UsageError, match="only a server wants a key"), opened("runs/x", key_variable="NO_KEY"):
        pass
