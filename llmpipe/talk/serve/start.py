"""serve: models behind OpenAI's HTTP API and a page to talk to them in.

llmpipe serve runs/quickstart
llmpipe serve runs/quickstart:base runs/quickstart:ppo --port 0
"""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import shlex
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpipe import console
from llmpipe.errors import UsageError
from llmpipe.packages import refuse_without_server
from llmpipe.talk.equipping import Tools, equipped

if TYPE_CHECKING:
    from llmpipe.talk.engine import Engine
    from llmpipe.talk.kit import Kit

TOKEN_VARIABLE = "LLMPIPE_TOKEN"
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for; `expose` lets `host` be an address that others can reach."""

    models: Sequence[str]
    host: str
    port: int
    expose: bool = False
    other_hosts: Sequence[str] = ()
    token_file: Path | None = None
    key_variable: str | None = None
    memory: Path | None = None
    keeps: bool = True
    parallel: int = 8
    moderation: str = "off"
    tools: Tools = field(default_factory=Tools)


def serve(wanted: Wanted, *, as_json: bool) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        UsageError: the address, the token or a package is not there, or would let others in.
        LlmpipeError: a model or the memory cannot be opened.
        KeyboardInterrupt: it was Ctrl-C.
    """
    refuse_without_server()
    refuse_exposed(wanted.host, expose=wanted.expose)
    given = _given_token(wanted.token_file)

    from llmpipe.moderation.opening import moderator as opened_moderator
    from llmpipe.talk.moderated import moderated

    with listen(wanted.host, wanted.port) as listening, ExitStack() as opened:
        moderator = opened_moderator(wanted.moderation)
        engines = {
            name: moderated(engine, moderator)
            for name, engine in _engines(wanted.models, wanted.key_variable, opened).items()
        }

        from llmpipe.talk.memory import Memory, default_path
        from llmpipe.talk.serve.app import create_app
        from llmpipe.talk.serve.connection import serve as answer
        from llmpipe.talk.serve.guard import LOOPBACK, Limits

        kept = opened.enter_context(Memory(wanted.memory or default_path())) if wanted.keeps else None
        token = given or secrets.token_urlsafe(32)
        hosts = [*LOOPBACK, in_url(wanted.host), *wanted.other_hosts]
        kit = _kit(wanted.tools, engines, opened)
        limits = Limits(running=wanted.parallel)
        app = create_app(engines, memory=kept, limits=limits, token=token, hosts=hosts, kit=kit)
        address = f"http://{in_url(wanted.host)}:{listening.getsockname()[1]}"
        signin = f"{address}/signin?code={app.state.signin.code()}"
        told = {"address": address, "models": list(engines), "signin": signin, "moderation": wanted.moderation}
        if as_json:
            console.as_json(told | {"token": token}, indent=None)
        else:
            _tell(told, None if given else token)
        answer(app, listening)


def _engines(models: Sequence[str], key_variable: str | None, opened: ExitStack) -> dict[str, Engine]:
    from llmpipe.talk.opening import opened as open_engine

    engines: dict[str, Engine] = {}
    for model in models:
        engine = opened.enter_context(open_engine(model, key_variable=key_variable if "://" in model else None))
        if engine.name in engines:
            raise UsageError(f"{engine.name} is named twice", hint="leave one of them out")
        engines[engine.name] = engine
    return engines


def _kit(tools: Tools, engines: Mapping[str, Engine], opened: ExitStack) -> Kit | None:
    """Return the tools of the page; clients of the API bring their own, and run them themselves."""
    if not tools:
        return None
    kit = opened.enter_context(equipped(tools, list(engines.values())))
    for note in kit.toolbox.notes:
        console.say(f"  {note}", style="dim")
    return kit


def refuse_exposed(host: str, *, expose: bool) -> None:
    """Refuse an address that other machines can reach, unless that is wanted.

    Raises:
        UsageError: it is one.
    """
    try:
        is_loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback and not expose:
        raise UsageError(
            f"--host {host} lets other machines reach the server, over HTTP that anyone on the way can read",
            hint="leave --host out and come through ssh -L or a TLS proxy; or add --expose",
        )


def _given_token(file: Path | None) -> str | None:
    """Read the token from its file, or from the environment."""
    if file is None:
        where, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
    else:
        try:
            where, token = str(file), file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            raise UsageError(f"--token-file {file} cannot be read: {failure}") from None
    if token is None:
        return None
    token = token.strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"the token of {where} is not {SHORTEST_TOKEN} or more ASCII characters without spaces",
            hint="make one: openssl rand -hex 32",
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """Take the port, before models are loaded, which takes longer.

    Raises:
        UsageError: it cannot be taken.
    """
    host = host.strip("[]")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as failure:
        # socket.create_server adds the address to the text
        reason = str(failure) if isinstance(failure, socket.gaierror) else os.strerror(failure.errno or 0)
        raise UsageError(f"cannot listen on {host}, port {port}: {reason}", hint="--port 0 takes a free one") from None


def in_url(host: str) -> str:
    """Write an address as URLs have it."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _tell(told: Mapping[str, Any], token: str | None) -> None:
    """Say where the server is and how to call it; a token is shown only where it was made here."""
    console.say(f"{', '.join(told['models'])} at {told['address']}")
    console.say(f"  page, for the first who opens it: {told['signin']}")
    console.say(f"  moderation: {told['moderation']}")
    if token:
        console.say(f"  token: {token}")
    body = json.dumps({"model": told["models"][0], "messages": [{"role": "user", "content": "Tell me a story."}]})
    shown = token or f"${TOKEN_VARIABLE}"
    console.say(
        f'  curl {told["address"]}/v1/chat/completions -H "Authorization: Bearer {shown}" '
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )
    console.say("  Ctrl-C ends it", style="dim")
