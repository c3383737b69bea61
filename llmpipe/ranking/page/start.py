"""rank --page: serves the page until it is ended, and prints a link for each annotator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmpipe import console
from llmpipe.packages import refuse_without_server
from llmpipe.ranking.start import Wanted, sampled
from llmpipe.ranking.store import Store
from llmpipe.talk.serve.start import in_url, listen, refuse_exposed


@dataclass(frozen=True)
class Where:
    """Where to listen; `expose` lets `host` be an address that others can reach."""

    host: str
    port: int
    expose: bool = False
    other_hosts: Sequence[str] = ()


def serve(store: Store, wanted: Wanted, annotators: Sequence[str], where: Where, *, as_json: bool) -> None:
    """Serve until SIGTERM or Ctrl-C; what was ranked until then is kept.

    Raises:
        UsageError: the address or a package is not there, or would let others in.
        LlmpipeError: there is no such round, model or file.
        KeyboardInterrupt: it was Ctrl-C.
    """
    refuse_without_server("rank --page")
    refuse_exposed(where.host, expose=where.expose)
    with listen(where.host, where.port) as listening, sampled(store, wanted) as (form, sampler):
        from llmpipe.ranking.page.app import create_app
        from llmpipe.talk.serve.connection import serve as answer
        from llmpipe.talk.serve.guard import LOOPBACK

        app = create_app(store, form, sampler=sampler, hosts=[*LOOPBACK, in_url(where.host), *where.other_hosts])
        address = f"http://{in_url(where.host)}:{listening.getsockname()[1]}"
        links = {name: f"{address}/signin?code={app.state.signin.code_for(name)}" for name in annotators}
        if as_json:
            console.as_json({"address": address, "links": links})
        else:
            console.say(f"{form.prompts} prompts to rank at {address}")
            for name, link in links.items():
                console.say(f"  {name}, once: {link}")
            console.say("  Ctrl-C ends it; the same command goes on, with new links", style="dim")
        try:
            answer(app, listening)
        finally:
            if sampler is not None and sampler.failure is not None:
                console.error(sampler.failure)
