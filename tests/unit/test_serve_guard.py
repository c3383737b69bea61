"""What is refused before it reaches a model, and who is dropped; on a port of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator

import pytest

from llmpipe.talk.serve.guard import Limits, Rate
from tests.unit.scripted import ScriptedEngine
from tests.unit.served import TOKEN, Served, served

BODY = json.dumps({"messages": [{"role": "user", "content": "hello"}]})
LIMITS = Limits(body_bytes=2_000, request_s=0.5, grace_s=1)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served({"scripted": ScriptedEngine(["<script>alert(1)</script> \x1b[2J done"])}, limits=LIMITS) as running:
        yield running


def ask(
    server: Served, path: str = "/v1/chat/completions", body: str | None = BODY, token: str | None = TOKEN, **more: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Ask with headers, whose names are written with `_`; a body is posted."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {name.replace("_", "-"): value for name, value in more.items()}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    connection.request("GET" if body is None else "POST", path, body, headers)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, reply.headers, content


def message(content: bytes) -> str:
    found: str = json.loads(content)["error"]["message"]
    return found


@pytest.mark.parametrize("token", [None, "", "token-of-the-test", TOKEN + "x", "tökén"])
def test_without_the_token_nothing_is_answered(server: Served, token: str | None) -> None:
    status, headers, content = ask(server, token=token)
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert message(content) == (
        "this needs the token that llmpipe serve printed (Authorization: Bearer ...), or its sign-in link"
    )


@pytest.mark.parametrize("path", ["/", "/v1/models", "/metrics", "/static/page.js", "/api/state", "/none", "//health"])
def test_every_path_but_health_needs_the_token(server: Served, path: str) -> None:
    assert ask(server, path, None, token=None)[0] == 401


def test_health_needs_no_token(server: Served) -> None:
    assert ask(server, "/health", None, token=None)[::2] == (200, b'{"status":"ok"}')


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "127.0.0.2"])
def test_a_name_that_is_not_ours_is_refused(server: Served, host: str) -> None:
    """A page of another site can have its name resolve to 127.0.0.1 (DNS rebinding)."""
    status, _, content = ask(server, "/health", None, Host=host)
    assert status == 400
    assert message(content) == "this host name is not served here; see --allow-host of llmpipe serve"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1"])
def test_a_post_from_a_page_of_another_origin_is_refused(server: Served, origin: str) -> None:
    status, headers, content = ask(server, Origin=origin)
    assert (status, message(content)) == (403, "requests from pages of other sites are refused")
    assert "Access-Control-Allow-Origin" not in headers


def test_a_post_from_our_own_page_is_answered(server: Served) -> None:
    assert ask(server, Origin=server.url)[0] == 200


def test_the_link_signs_in_once_and_its_cookie_posts_only_from_our_page(server: Served) -> None:
    link = server.link.removeprefix(server.url)
    status, headers, _ = ask(server, link, None, token=None)
    assert (status, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    signed = {"Cookie": cookie.partition(";")[0], "token": None}
    assert ask(server, "/v1/models", None, **signed)[0] == 200
    assert ask(server, **signed)[0] == 401
    assert ask(server, Origin=server.url, **signed)[0] == 200
    assert ask(server, link, None, token=None)[0] == 403
    assert ask(server, "/v1/models", None, token=None, Cookie=signed["Cookie"] + "x")[0] == 401


def test_a_body_that_is_declared_too_large_is_refused(server: Served) -> None:
    status, _, content = ask(server, body=" " * 2_001)
    assert (status, message(content)) == (413, "the request is larger than 2,000 bytes")


def test_a_body_in_chunks_without_a_length_is_refused_once_it_is_too_large(server: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    connection.request("POST", "/v1/chat/completions", iter([b" " * 500] * 10), headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0",
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
        'Content-Length: 99\r\n\r\n{"mess',
    ],
    ids=["nothing", "half of the headers", "half of the body"],
)
def test_a_client_that_does_not_finish_its_request_is_dropped(server: Served, sent: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(sent.encode())
        begun = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1000) == b""
        assert time.monotonic() - begun >= 0.3


def test_a_client_that_drips_is_dropped_too(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nX-A: ")
        with pytest.raises(ConnectionError):
            for _ in range(100):
                client.sendall(b"a")
                time.sleep(0.05)


def test_too_many_requests_are_told_to_wait() -> None:
    with served({"scripted": ScriptedEngine(["hi"])}, limits=Limits(requests_per_s=0.5, burst=2, grace_s=1)) as server:
        told = [ask(server, "/health", None) for _ in range(3)]
    assert [status for status, _, _ in told] == [200, 200, 429]
    assert told[-1][1]["Retry-After"] == "2"
    assert message(told[-1][2]) == "too many requests; slow down"


def test_a_bucket_refills_and_is_no_larger_than_the_burst() -> None:
    rate = Rate(2, 3)
    assert [rate.wait_s("a", 0.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert rate.wait_s("b", 0.0) == 0
    assert rate.wait_s("a", 0.5) == 0
    assert [rate.wait_s("a", 100.0) for _ in range(4)] == [0, 0, 0, 0.5]


def test_what_a_model_writes_stays_text(server: Served) -> None:
    status, headers, content = ask(server)
    assert (status, headers["Content-Type"], headers["X-Content-Type-Options"]) == (200, "application/json", "nosniff")
    assert b"\x1b" not in content
    told = json.loads(content)["choices"][0]["message"]["content"]
    assert told == "<script>alert(1)</script> \x1b[2J done"


@pytest.mark.parametrize("path", ["/health", "/", "/none"])
def test_no_answer_is_without_the_security_headers(server: Served, path: str) -> None:
    headers = ask(server, path, None)[1]
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in headers["Content-Security-Policy"]
    for name, value in (("X-Frame-Options", "DENY"), ("Referrer-Policy", "no-referrer"), ("Cache-Control", "no-store")):
        assert headers[name] == value
    assert "Server" not in headers
