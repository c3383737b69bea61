"""The commands that talk to a model, beside `generate`: chat and serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmpipe.errors import UsageError
from llmpipe.flags import Json, guarded

NAMES = "RUN (its last model), RUN:STAGE, a folder, FILE.gguf, hub:ID or http://HOST/v1#MODEL."
MemoryFile = Annotated[
    Path | None, typer.Option("--memory", metavar="FILE", help="Memory; $LLMPIPE_HOME/memory.sqlite3 if left out.")
]
NoMemory = Annotated[bool, typer.Option("--no-memory", help="Keep nothing of it.")]
KeyVariable = Annotated[
    str | None,
    typer.Option("--key-variable", metavar="NAME", help="Environment variable that holds a server's API key."),
]
Moderation = Annotated[
    str, typer.Option("--moderation", metavar="POLICY", help="A policy file, default, or off; see moderate.")
]

ToolNames = Annotated[
    list[str] | None,
    typer.Option("--tools", metavar="NAMES", help="Tools that the model may ask for, such as calculator,web_search."),
]
Allowed = Annotated[
    list[str] | None, typer.Option("--allow", metavar="NAMES", help="Tools that it may use without being asked for.")
]
McpFile = Annotated[Path | None, typer.Option("--mcp", metavar="FILE", help="MCP servers whose tools it may ask for.")]

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Expose = Annotated[bool, typer.Option("--expose", help="Let --host be an address that others can reach.")]
AllowHost = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Another name that the server is called by.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (chat, serve, moderate):
        app.command(rich_help_panel="Talk")(guarded(command))


def chat(
    model: Annotated[str, typer.Argument(help=NAMES)],
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="How the model is to be.")] = None,
    continue_: Annotated[bool, typer.Option("--continue", help="Go on with the newest conversation.")] = False,
    conversation: Annotated[
        int | None, typer.Option("--conversation", metavar="N", min=1, help="Go on with this conversation.")
    ] = None,
    memory: MemoryFile = None,
    no_memory: NoMemory = False,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same answers.")] = None,
    key_variable: KeyVariable = None,
    tools: ToolNames = None,
    allow: Allowed = None,
    file: Annotated[
        list[Path] | None, typer.Option("--file", metavar="FILE", help="A file that the model may read.")
    ] = None,
    mcp: McpFile = None,
    moderation: Moderation = "off",
    json_output: Json = False,
) -> None:
    """Talk to a model; through a pipe, all of stdin is one message, and only the answer is printed."""
    if no_memory and (memory or continue_ or conversation):
        raise UsageError("--no-memory keeps nothing, so no memory and no conversation can be named beside it")
    if continue_ and conversation:
        raise UsageError("--continue is the newest conversation; name another one by --conversation alone")
    from llmpipe.talk.engine import Sampling
    from llmpipe.talk.equipping import Tools, names_of
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
        tools=Tools(names_of(tools), names_of(allow), file or (), mcp),
        moderation=moderation,
    )
    talk(wanted, as_json=json_output)


def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help=NAMES),
    ],
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
    expose: Expose = False,
    allow_host: AllowHost = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the token; else LLMPIPE_TOKEN, else a random one is made."),
    ] = None,
    key_variable: KeyVariable = None,
    memory: MemoryFile = None,
    no_memory: NoMemory = False,
    parallel: Annotated[int, typer.Option(min=1, help="Answers at once; others wait.")] = 8,
    moderation: Moderation = "off",
    tools: ToolNames = None,
    allow: Allowed = None,
    mcp: McpFile = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print address, token and sign-in link as JSON once it serves.")
    ] = False,
) -> None:
    """Serve models over OpenAI's HTTP API, and a page to talk to them in."""
    if no_memory and memory:
        raise UsageError("--no-memory keeps nothing, so no memory can be named beside it")
    from llmpipe.talk.equipping import Tools, names_of
    from llmpipe.talk.serve.start import Wanted
    from llmpipe.talk.serve.start import serve as start

    wanted = Wanted(
        models,
        host,
        port,
        expose=expose,
        other_hosts=allow_host or (),
        token_file=token_file,
        key_variable=key_variable,
        memory=memory,
        keeps=not no_memory,
        parallel=parallel,
        moderation=moderation,
        tools=Tools(names_of(tools), names_of(allow), mcp=mcp),
    )
    start(wanted, as_json=json_output)


def moderate(
    text: Annotated[str | None, typer.Argument(help="Text to look at; - for stdin.")] = None,
    policy: Annotated[str, typer.Option("--policy", metavar="POLICY", help="A policy file, or default.")] = "default",
    place: Annotated[
        Literal["input", "output", "tool"], typer.Option("--place", help="Where the text would stand.")
    ] = "input",
    example: Annotated[bool, typer.Option("--example", help="Print the default policy, to edit.")] = False,
    json_output: Json = False,
) -> None:
    """Show what each layer of a moderation policy finds in a text, and what would become of it."""
    from llmpipe.moderation import shown

    if example:
        shown.show_example()
    else:
        shown.show(text, policy, place, as_json=json_output)
