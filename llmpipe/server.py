"""JSON over HTTP to a server that a recipe names, and to no other: it is never followed to another address."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from llmpipe.errors import StageError

TRIES = 5
LONGEST_WAIT_S = 60.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirection as the answer: Python 3.11 would send the key along, wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""


_send = urllib.request.build_opener(_NoRedirect).open


@dataclass(frozen=True)
class Server:
    """A server; `hint` says what to look at where it cannot be reached."""

    url: str
    hint: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0
    first_wait_s: float = 1.0
    tries: int = TRIES

    def post(self, path: str, content: dict[str, Any]) -> tuple[int, str]:
        """Send JSON and return status and what came back; a server that is away or in trouble is asked again.

        Raises:
            StageError: it was in vain every time.
        """
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = json.dumps(content).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data=data, headers=headers)
        trouble, asked_to_wait = "", 0.0
        for turn in range(self.tries):
            if turn:
                time.sleep(max(self.first_wait_s * 2 ** (turn - 1), asked_to_wait))
            try:
                with _send(request, timeout=self.timeout_s) as reply:
                    return int(reply.status), reply.read().decode()
            except urllib.error.HTTPError as error:
                body = message_of(error.read().decode(errors="replace"))
                if error.code < 500 and error.code != 429:
                    return error.code, body
                trouble, asked_to_wait = f"status {error.code}: {body}", _wait_s(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                trouble, asked_to_wait = str(getattr(error, "reason", error)), 0.0
        times = f", {self.tries} times in a row" if self.tries > 1 else ""
        raise StageError(
            f"the server at {self.url} cannot be reached or is in trouble{times}: {trouble}",
            hint=self.hint,
        )


def _wait_s(said: str | None) -> float:
    """Read Retry-After in seconds; one that gives a date is left to our own pace."""
    return min(float(said), LONGEST_WAIT_S) if said and said.isdecimal() else 0.0


def message_of(body: str) -> str:
    """Return what an error says; in vLLM before version 0.10 it was not inside of `error`."""
    try:
        found = json.loads(body)
        return str((found.get("error") or found)["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return body.strip()[:500] or "no reason given"
