"""OpenAI's own client, against scripted answers on a port of its own."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest

from llmpipe.errors import TalkError
from llmpipe.talk.engine import Message, Piece, Sampling, Usage
from llmpipe.talk.serve.guard import Limits
from tests.unit.scripted import ScriptedEngine
from tests.unit.served import TOKEN, Served, served

HELLO = [{"role": "user", "content": "hello there"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "duck"}'}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


class Calling(ScriptedEngine):
    """Calls a tool if it is given one; fails after a word where it is asked to."""

    def chat(self, messages: Sequence[Message], how: Sampling, tools: Sequence[Message] = ()) -> Iterator[Piece]:
        if messages[-1]["content"] == "fail":
            yield Piece("Half")
            raise TalkError("the model fell over")
        if messages[-1]["content"] == "bug":
            raise ZeroDivisionError("secret of the inside")
        if tools:
            self.tools = list(tools)
            yield Piece("", "tool_calls", Usage(3, 2), getattr(self, "broken", (CALL,)))
            return
        yield from super().chat(messages, how, tools)


class Endless(ScriptedEngine):
    """Goes on until it is closed, which sets `ended`."""

    def __init__(self) -> None:
        super().__init__([""], name="endless")
        self.ended, self.steps = threading.Event(), threading.Semaphore(0)

    def chat(self, messages: Sequence[Message], how: Sampling, tools: Sequence[Message] = ()) -> Iterator[Piece]:
        try:
            while True:
                yield Piece("on ")
                self.steps.acquire(timeout=0.02)
        finally:
            self.ended.set()


@pytest.fixture(scope="module")
def engines() -> dict[str, ScriptedEngine]:
    talks = Calling(["Once upon a time"], name="chat", context=20)
    return {"chat": talks, "base": ScriptedEngine(["and so on"], name="base", chats=False), "endless": Endless()}


@pytest.fixture(scope="module")
def server(engines: dict[str, ScriptedEngine]) -> Iterator[Served]:
    with served(engines, limits=Limits(running=2, waiting=2, grace_s=0.3)) as running:
        yield running


@pytest.fixture
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0, timeout=20)


def test_a_chat(client: openai.OpenAI, engines: dict[str, ScriptedEngine]) -> None:
    told = client.chat.completions.create(
        model="chat", messages=HELLO, temperature=0.5, top_p=0.9, seed=3, stop=["END"], max_tokens=3, user="me", n=1
    )
    assert told.choices[0].message.content == "Once upon a"
    assert (told.choices[0].finish_reason, told.model, told.object) == ("length", "chat", "chat.completion")
    assert told.usage is not None
    assert (told.usage.prompt_tokens, told.usage.completion_tokens, told.usage.total_tokens) == (2, 3, 5)
    assert engines["chat"].how[-1] == Sampling(3, 0.5, 0.9, 3, ("END",))


def test_a_stream(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="chat", messages=HELLO, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Once upon a time"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "stop"]
    assert (chunks[0].choices[0].delta.role, chunks[-1].choices) == ("assistant", [])
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_usage_has_none(client: openai.OpenAI) -> None:
    assert all(
        chunk.usage is None for chunk in client.chat.completions.create(model="chat", messages=HELLO, stream=True)
    )


def test_tools_are_passed_on_and_their_calls_come_back(
    client: openai.OpenAI, engines: dict[str, ScriptedEngine]
) -> None:
    told = client.chat.completions.create(model="chat", messages=HELLO, tools=[TOOL]).choices[0]
    assert engines["chat"].tools == [TOOL]
    assert told.finish_reason == "tool_calls"
    assert told.message.content is None
    assert [call.model_dump() for call in told.message.tool_calls] == [CALL]
    chunks = list(client.chat.completions.create(model="chat", messages=HELLO, tools=[TOOL], stream=True))
    (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert (call.index, call.function.arguments) == (0, '{"at": "duck"}')


def test_a_call_that_cannot_be_read_is_text(client: openai.OpenAI, engines: dict[str, ScriptedEngine]) -> None:
    engines["chat"].broken = (CALL | {"function": {"name": "", "arguments": "{oh"}},)
    try:
        told = client.chat.completions.create(model="chat", messages=HELLO, tools=[TOOL]).choices[0]
    finally:
        del engines["chat"].broken
    assert (told.message.content, told.message.tool_calls, told.finish_reason) == ("{oh", None, "stop")


def test_a_text_is_continued(client: openai.OpenAI) -> None:
    told = client.completions.create(model="base", prompt="once")
    assert (told.choices[0].text, told.choices[0].finish_reason, told.object) == (
        "and so on",
        "stop",
        "text_completion",
    )
    chunks = list(client.completions.create(model="base", prompt="once", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "and so on"


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["chat", "base", "endless"]
    assert client.models.retrieve("base").id == "base"


WRONG: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"model": "chatt"}, 404, "the model chatt does not exist; there is chat, base, endless", "model"),
    ({"model": "base"}, 400, "base knows no turns, it only continues texts: use /v1/completions", "model"),
    ({"n": 2}, 400, "n is not supported", "n"),
    ({"logprobs": True}, 400, "logprobs is not supported", "logprobs"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported", "response_format"),
    ({"extra_body": {"temprature": 1}}, 400, "temprature is not a parameter, did you mean temperature?", "temprature"),
    ({"temperature": 3}, 400, "temperature: input should be less than or equal to 2", "temperature"),
    ({"messages": []}, 400, "messages: list should have at least 1 item after validation, not 0", "messages"),
    (
        {"messages": [{"role": "user", "content": "word " * 20}]},
        400,
        "the prompt has 20 tokens, and chat sees 20 at once, its answer included",
        "messages",
    ),
]


@pytest.mark.parametrize(("change", "status", "message", "param"), WRONG, ids=[str(case[0])[:40] for case in WRONG])
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_said_with_its_name(
    client: openai.OpenAI, change: dict[str, Any], status: int, message: str, param: str | None, *, stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as told:
        client.chat.completions.create(**{"model": "chat", "messages": HELLO, "stream": stream} | change)
    assert told.value.status_code == status
    assert told.value.body["message"] == message
    assert told.value.param == param


def test_a_prompt_that_is_too_long_has_its_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "word " * 21}])
    assert told.value.code == "context_length_exceeded"


def test_parameters_that_ask_for_nothing_pass(client: openai.OpenAI) -> None:
    neutral = {"n": 1, "frequency_penalty": 0, "logprobs": False, "response_format": {"type": "text"}}
    told = client.chat.completions.create(model="chat", messages=HELLO, **neutral)
    assert told.choices[0].message.content == "Once upon a time"


@pytest.mark.parametrize(("words", "message"), [("fail", "the model fell over"), ("bug", None)])
def test_a_failure_is_told(client: openai.OpenAI, words: str, message: str | None) -> None:
    messages = [{"role": "user", "content": words}]
    with pytest.raises(openai.APIStatusError) as told:
        client.chat.completions.create(model="chat", messages=messages)
    assert told.value.status_code == (502 if message else 500)
    assert told.value.body["message"] == (message or "the server failed; its log says why")


def test_a_failure_in_the_middle_of_a_stream_is_an_event(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "fail"}], stream=True)
    seen: list[str] = []
    with pytest.raises(openai.APIError, match="the model fell over"):
        seen.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert seen == ["", "Half"] or seen == []  # extend keeps what came before the error, or nothing


@pytest.mark.parametrize("body", ["", "[]", "{", '{"a": "\\ud800"}', "[" * 1000])
def test_what_is_no_json_object_is_refused(server: Served, body: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {TOKEN}"})
    reply = connection.getresponse()
    assert (reply.status, json.loads(reply.read())["error"]["message"]) == (400, "the body is not a JSON object")
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_ends_when_its_client_goes(server: Served, engines: dict[str, Any], *, stream: bool) -> None:
    ended = engines["endless"].ended
    ended.clear()
    body = {"model": "endless", "messages": HELLO, "stream": stream}
    connection = server.begin("POST", "/v1/chat/completions", body)
    if stream:
        connection.getresponse().read(10)
    assert not ended.wait(0.2)
    connection.close()
    assert ended.wait(10)


def test_the_metrics_count(client: openai.OpenAI, server: Served) -> None:
    client.chat.completions.create(model="chat", messages=HELLO)
    connection = server.begin("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    counted = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert int(counted['llmpipe_requests_total{path="/v1/chat/completions",status="200"}']) >= 1
    assert int(counted['llmpipe_tokens_total{kind="answer"}']) >= 4
    assert (
        counted['llmpipe_time_to_first_token_seconds_bucket{le="+Inf"}']
        == counted["llmpipe_time_to_first_token_seconds_count"]
    )
    assert counted["llmpipe_answers_queued"] == "0"


def test_more_answers_than_may_wait_are_told_to_try_again() -> None:
    with served({"endless": Endless()}, limits=Limits(running=1, waiting=1, grace_s=0.3)) as server:
        body = {"messages": HELLO, "stream": True}
        first = server.begin("POST", "/v1/chat/completions", body)
        first.getresponse().read(10)
        second = server.begin("POST", "/v1/chat/completions", body)
        threading.Event().wait(0.2)
        third = server.begin("POST", "/v1/chat/completions", body)
        reply = third.getresponse()
        assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
        for connection in (first, second, third):
            connection.close()


def test_a_server_that_ends_stops_its_answers_after_a_while() -> None:
    with served({"endless": Endless()}, limits=Limits(grace_s=0.2)) as server:
        connection = server.begin("POST", "/v1/chat/completions", {"messages": HELLO, "stream": True})
        reply = connection.getresponse()
        reply.read(10)
    text = reply.read().decode()
    assert '{"error": {"message": "the server is shutting down"' in text.splitlines()[-2]
