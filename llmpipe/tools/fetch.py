"""One page of the public web: every step within the guard, and no more bytes or seconds than there is patience for.

There is no library for this: those that fetch resolve a name again, or follow redirects by themselves. No cookies, no
keys and no address of the page before are sent, and proxies of the environment are not used: a proxy would resolve
the name again.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
import zlib
from contextlib import closing, suppress
from dataclasses import dataclass
from threading import Timer
from typing import Any
from urllib.parse import quote, urljoin

from llmpipe import __version__
from llmpipe.errors import TalkError
from llmpipe.tools import guard
from llmpipe.tools.fence import one_line
from llmpipe.tools.guard import Target

MOST_BYTES = 2 * 2**20
"""The most of a page, once it is unpacked."""
MOST_REDIRECTS = 5
TOTAL_S = 10.0
"""For all of it, redirects included."""
CHUNK_BYTES = 2**16
GZIP = 16 + zlib.MAX_WBITS
MOVED = (301, 302, 303, 307, 308)
KINDS = ("text/html", "application/xhtml+xml", "text/plain", "text/markdown", "application/json", "text/csv")
HEADERS = {
    "User-Agent": f"llmpipe/{__version__} (reads single pages for a person)",
    "Accept": "text/html, application/xhtml+xml, text/plain;q=0.9, application/json;q=0.8",
    "Accept-Encoding": "gzip",
}


@dataclass(frozen=True)
class Page:
    """What an address had: where it was in the end, its type, the encoding that the server names, its bytes."""

    url: str
    kind: str
    encoding: str | None
    body: bytes


def fetched(url: str) -> Page:
    """Return a page.

    Raises:
        TalkError: the address is not of the public web, or leads away from it; the server is away, too slow, or says
            no; the page is too large or of a kind that is not read.
    """
    deadline = time.monotonic() + TOTAL_S
    for _ in range(MOST_REDIRECTS + 1):
        aim = guard.target(url)
        with closing(_Connection(aim, deadline)) as connection:
            found = _asked(connection, aim)
        if isinstance(found, Page):
            return found
        url = found
    raise TalkError(f"the page moves more than {MOST_REDIRECTS} times")


def _asked(connection: _Connection, aim: Target) -> Page | str:
    """Return the page of an address, or the address that it moved to."""
    try:
        connection.request("GET", quote(aim.path, safe="/?&=%:;,+@!$'()*~-._[]"), headers=HEADERS)
        reply = connection.getresponse()
        if reply.status in MOVED and (elsewhere := reply.headers.get("Location")):
            return urljoin(aim.url, elsewhere.strip().replace(" ", "%20"))
        if reply.status != 200:
            raise TalkError(f"{aim.host} answers {reply.status} {one_line(reply.reason, 80)}".rstrip())
        kind = reply.headers.get_content_type()
        if kind not in KINDS:
            raise TalkError(f"this is {one_line(kind, 80)}, and only pages and texts are read")
        body = _unpacked(reply, connection.deadline)
        return Page(aim.url, kind, reply.headers.get_content_charset(), body)
    except (OSError, http.client.HTTPException, zlib.error, ValueError) as error:
        if connection.is_late():
            raise _late() from error
        raise TalkError(f"{aim.host} cannot be read: {one_line(str(error), 200)}") from error
    finally:
        connection.alarm.cancel()


def _unpacked(reply: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read a body, unpacked as it comes, so that a small one cannot become a large one unseen."""
    packing = reply.headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in ("identity", "gzip", "x-gzip", ""):
        raise TalkError(f"the page is packed as {one_line(packing, 40)}, which was not asked for")
    unpack = zlib.decompressobj(GZIP) if "gzip" in packing else None
    body = bytearray()
    while chunk := reply.read1(CHUNK_BYTES):
        body += unpack.decompress(chunk, MOST_BYTES + 1 - len(body)) if unpack else chunk
        if len(body) > MOST_BYTES:
            raise TalkError(f"the page is larger than {MOST_BYTES:,} bytes, the most that is read")
        if time.monotonic() > deadline:
            raise _late()
    if time.monotonic() > deadline:  # the alarm ends a body that has no length without an error
        raise _late()
    if reply.length:
        raise http.client.IncompleteRead(bytes(body), reply.length)
    return bytes(body)


def _late() -> TalkError:
    return TalkError(f"the page is not there within {TOTAL_S:g} s")


class _Connection(http.client.HTTPConnection):
    """A connection to the machine that was looked up, and to no other; TLS still proves the name.

    An alarm closes it at the deadline, also while a server sends a byte a second, which no timeout of a socket ends.
    """

    def __init__(self, aim: Target, deadline: float) -> None:
        super().__init__(aim.host, aim.port)
        self.sock: Any = None
        self.default_port = guard.PORTS[aim.scheme]  # some servers know their name with a port as another
        self.aim, self.deadline = aim, deadline
        self.alarm = Timer(max(0.0, deadline - time.monotonic()), self._ring)
        self.alarm.daemon = True
        self.alarm.start()

    def is_late(self) -> bool:
        return time.monotonic() >= self.deadline

    def connect(self) -> None:
        """Connect to the first of the machines that answers."""
        failure: OSError = OSError("no machine answers")
        for machine in self.aim.machines:
            left_s = self.deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            try:
                raw = socket.create_connection((machine, self.aim.port), timeout=left_s)
            except OSError as error:
                failure = error
                continue
            self.sock = raw
            if self.aim.scheme == "https":
                context = ssl.create_default_context()
                self.sock = context.wrap_socket(raw, server_hostname=self.aim.host, do_handshake_on_connect=False)
                self.sock.do_handshake()  # only now, so that the alarm knows which socket to close
            return
        raise failure

    def _ring(self) -> None:
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
