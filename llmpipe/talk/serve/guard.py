"""What every request passes before the app sees it: host, origin, rate, token or cookie, size.

Plain ASGI, so that streams are passed on piece by piece and a client that goes away is noticed.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmpipe.talk.serve.metrics import Metrics

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
OPEN_PATHS = ("/health", "/signin", "/static/page.css", "/static/icon.svg")
SAFE_METHODS = ("GET", "HEAD")
CLIENTS_KEPT = 10_000
DRAIN_S = 1.0
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """What one server bears. Requests beyond `running` answers wait, beyond `waiting` they are refused."""

    body_bytes: int = 4 * 2**20
    requests_per_s: float = 50.0
    burst: int = 200
    running: int = 8
    waiting: int = 64
    request_s: float = 20.0
    """A request that has not arrived whole by then is dropped."""
    stalled_s: float = 30.0
    """A client that takes nothing of its answer for so long is dropped."""
    grace_s: float = 10.0
    """How long running answers may go on once the server is to end."""


class Refused(Exception):
    """A request that is not served: its status, what is wrong in OpenAI's words, and headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers or {}

    @property
    def body(self) -> dict[str, object]:
        """The error as OpenAI's API writes it."""
        kind = "server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else None
        kind = kind or ("authentication_error" if self.status == 401 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Signin:
    """One-time codes for links to the page, and the sessions that they began; all of it in memory."""

    page = Path(__file__).with_name("static") / "signin.html"
    """What a person is shown who is not signed in."""
    needed = "this needs the token that llmpipe serve printed (Authorization: Bearer ...), or its sign-in link"

    def __init__(self) -> None:
        self._codes: set[str] = set()
        self._sessions: set[str] = set()

    def code(self) -> str:
        """Make a code that begins one session."""
        code = secrets.token_urlsafe(24)
        self._codes.add(code)
        return code

    def begin(self, code: str) -> str | None:
        """Begin a session with a code, which is used up; None if there is no such code."""
        if code not in self._codes:
            return None
        self._codes.remove(code)
        session = secrets.token_urlsafe(32)
        self._sessions.add(session)
        return session

    def knows(self, session: str) -> bool:
        """Tell whether a session was begun here."""
        return session in self._sessions


class Rate:
    """A bucket of requests for each client, refilled steadily; the clients seen longest ago are forgotten."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str, now: float) -> float:
        """Take one request; returns 0, or the seconds until there is one to take."""
        left, then = self._left.pop(client, (float(self._burst), now))
        left = min(self._burst, left + (now - then) * self._per_s)
        self._left[client] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > CLIENTS_KEPT:
            self._left.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / self._per_s


def cookie_name(host: str) -> str:
    """Name the cookie of a server: browsers send the cookies of a host to all of its ports."""
    return f"llmpipe_{urlsplit(f'//{host}').port or 80}"


class Guard:
    """Refuses what must not reach the app, and adds the security headers to all that leaves it."""

    def __init__(
        self, app: ASGIApp, *, token: str, hosts: Collection[str], limits: Limits, signin: Signin, metrics: Metrics
    ) -> None:
        self._app, self._limits, self._signin, self._metrics = app, limits, signin, metrics
        self._token = token.encode()
        self._hosts = {host.lower() for host in hosts}
        self._rate = Rate(limits.requests_per_s, limits.burst)
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._served(scope, receive, self._marked(scope, send))
        else:  # a WebSocket, which nothing here uses
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _served(self, scope: Scope, receive: Receive, send: Send) -> None:
        changes = scope["method"] not in SAFE_METHODS
        self._open += changes
        try:
            self._check(scope, Headers(scope=scope))
            body = await self._body(scope, receive) if changes else b""
        except Refused as refusal:
            await self._drain(receive)
            is_page = scope["path"] == "/" and refusal.status == 401
            await _refuse(refusal, send, page=self._signin.page if is_page else None)
        except ConnectionResetError:
            return
        else:
            await self._app(scope, _replayed(body, receive) if changes else receive, send)
        finally:
            self._open -= changes

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        if len(headers.getlist("host")) != 1 or _name(host) not in self._hosts:
            raise Refused(400, "this host name is not served here; see --allow-host of llmpipe serve")
        changes = scope["method"] not in SAFE_METHODS
        origin = headers.get("origin")
        if changes and origin is not None and not _is_own(origin, host):
            raise Refused(403, "requests from pages of other sites are refused")
        client = scope["client"][0] if scope.get("client") else ""
        if wait_s := self._rate.wait_s(client, time.monotonic()):
            raise _too_many("too many requests; slow down", wait_s)
        if scope["path"] not in OPEN_PATHS and not self._is_known(headers, host, needs_origin=changes):
            raise Refused(401, self._signin.needed, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if changes and self._open > self._limits.running + self._limits.waiting:
            raise _too_many("too many requests at once; try again", 1)

    def _is_known(self, headers: Headers, host: str, *, needs_origin: bool) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(cookie_name(host))
        except CookieError:
            return False
        if cookie is None or (needs_origin and "origin" not in headers):
            return False
        return self._signin.knows(cookie.value)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Read the body whole, so that the app never waits for a slow client."""
        limit = self._limits.body_bytes
        if int(Headers(scope=scope).get("content-length") or 0) > limit:
            raise _too_large(limit)
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            size += len(message.get("body", b""))
            if size > limit:
                raise _too_large(limit)
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _drain(self, receive: Receive) -> None:
        """Let a client finish sending, for a moment: one that is cut off in the middle may never see its answer."""
        size, more = 0, True
        try:
            async with asyncio.timeout(DRAIN_S):
                while more and size < 4 * self._limits.body_bytes:
                    message = await receive()
                    size += len(message.get("body", b""))
                    more = message["type"] == "http.request" and message.get("more_body", False)
        except TimeoutError:
            return

    def _marked(self, scope: Scope, send: Send) -> Send:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.count_request(scope["path"], message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        return marked


def _name(host: str) -> str:
    """Return a Host header's name without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _is_own(origin: str, host: str) -> bool:
    """Tell whether an origin is the server itself, port included; TLS may end before it."""
    return origin.lower() in (f"http://{host}", f"https://{host}")


def _too_many(message: str, wait_s: float) -> Refused:
    seconds = str(max(1, round(wait_s)))
    return Refused(429, message, code="rate_limit_exceeded", headers={"Retry-After": seconds})


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the request is larger than {limit:,} bytes", code="request_too_large")


async def _refuse(refusal: Refused, send: Send, *, page: Path | None = None) -> None:
    """Refuse as OpenAI's API does; a person who opens the page is told how to sign in."""
    body = page.read_bytes() if page else json.dumps(refusal.body).encode()
    kind = "text/html; charset=utf-8" if page else "application/json"
    # closed, so that what is still on its way is not taken for the next request, nor read for ever
    fixed = {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}
    headers = [(name.lower().encode(), value.encode()) for name, value in {**fixed, **refusal.headers}.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give the body as one message, then what comes after it: that the client went away."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
