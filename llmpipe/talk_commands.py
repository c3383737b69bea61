"""The commands that talk to a model, beside `generate`: chat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmpipe.errors import UsageError
from llmpipe.flags import Json, guarded

KeyVariable = Annotated[
    str | None,
    typer.Option("--key-variable", metavar="NAME", help="Environment variable that holds a server's API key."),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Talk")(guarded(chat))


def chat(
    model: Annotated[
        str,
        typer.Argument(help="RUN (its last model), RUN:STAGE, a folder, FILE.gguf, hub:ID or http://HOST/v1#MODEL."),
    ],
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="How the model is to be.")] = None,
    continue_: Annotated[bool, typer.Option("--continue", help="Go on with the newest conversation.")] = False,
    conversation: Annotated[
        int | None, typer.Option("--conversation", metavar="N", min=1, help="Go on with this conversation.")
    ] = None,
    memory: Annotated[
        Path | None, typer.Option("--memory", metavar="FILE", help="Memory; $LLMPIPE_HOME/memory.sqlite3 if left out.")
    ] = None,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Keep nothing of it.")] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same answers.")] = None,
    key_variable: KeyVariable = None,
    json_output: Json = False,
) -> None:
    """Talk to a model; through a pipe, all of stdin is one message, and only the answer is printed."""
    if no_memory and (memory or continue_ or conversation):
        raise UsageError("--no-memory keeps nothing, so no memory and no conversation can be named beside it")
    if continue_ and conversation:
        raise UsageError("--continue is the newest conversation; name another one by --conversation alone")
    from llmpipe.talk.engine import Sampling
    from llmpipe.talk.repl import Wanted
    from llmpipe.talk.repl import chat as talk

    wanted = Wanted(
        model,
        system,
        Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed),
        memory=memory,
        keeps=not no_memory,
        continued="last" if continue_ else conversation,
        key_variable=key_variable,
    )
    talk(wanted, as_json=json_output)
