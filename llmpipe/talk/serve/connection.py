"""The HTTP server: uvicorn, with less patience for slow clients and for answers that do not end."""

from __future__ import annotations

import asyncio
import signal
import socket
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmpipe.talk.serve.guard import Limits

HEADER_BYTES = 16 * 2**10
CONNECTIONS = 512


def impatient(limits: Limits) -> type[H11Protocol]:
    """Return uvicorn's protocol with two limits that it lacks (0.54): for a request to arrive, and for an answer to be
    taken."""

    class Impatient(H11Protocol):
        """Drops a connection whose client is too slow."""

        _due: asyncio.TimerHandle | None = None
        _stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._due = self.loop.call_later(limits.request_s, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            owed = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
            if owed and self._due is None:
                self._due = self.loop.call_later(limits.request_s, self.transport.abort)
            elif not owed and self._due is not None:
                self._due.cancel()
                self._due = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = self.loop.call_later(limits.stalled_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._due is not None:
                self._due.cancel()

    return Impatient


class Server(uvicorn.Server):
    """Ends on SIGTERM and Ctrl-C: running answers may go on for some seconds, then they are stopped."""

    def __init__(self, app: FastAPI) -> None:
        limits: Limits = app.state.limits
        self._app, self._grace_s = app, limits.grace_s
        super().__init__(
            uvicorn.Config(
                app,
                http=impatient(limits),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS,
                h11_max_incomplete_event_size=HEADER_BYTES,
                timeout_graceful_shutdown=int(limits.grace_s) + 10,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, wait for what runs, and stop it when that takes too long."""
        asyncio.get_running_loop().call_later(self._grace_s, self._app.state.answers.stop)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal; the second one stops what still runs."""
        if self.should_exit:
            self._app.state.answers.stop()
        super().handle_exit(sig, frame)


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
    """
    # uvicorn raises a signal again that it has obeyed: SIGTERM is then no failure
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        Server(app).run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
