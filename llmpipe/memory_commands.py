"""The commands that look into the memory of conversations and tidy it up: `llmpipe memory list` and the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from llmpipe.flags import Json, guarded

Yes = Annotated[bool, typer.Option("--yes", help="Delete without asking.")]


def add_to(app: typer.Typer) -> None:
    """Add the group and its commands."""
    group = typer.Typer(
        help="Find, show, export and delete what `chat` and `serve` keep of conversations.", no_args_is_help=True
    )
    commands: dict[str, Callable[..., None]] = {
        "list": list_conversations,
        "show": show,
        "search": search,
        "facts": facts,
        "forget": forget,
        "delete": delete,
        "export": export,
    }
    for name, command in commands.items():
        group.command(name)(guarded(command))
    app.add_typer(group, name="memory", rich_help_panel="Talk")


def list_conversations(
    limit: Annotated[int, typer.Option("--limit", min=1, help="As many of the newest.")] = 50,
    json_output: Json = False,
) -> None:
    """List the conversations in which something was said last."""
    from llmpipe.talk import memory_shown

    memory_shown.show_conversations(limit, as_json=json_output)


def show(
    conversation: Annotated[int, typer.Argument(help="Its number in `llmpipe memory list`.")],
    json_output: Json = False,
) -> None:
    """Print a conversation."""
    from llmpipe.talk import memory_shown

    memory_shown.show_conversation(conversation, as_json=json_output)


def search(
    words: Annotated[list[str], typer.Argument(help="Words; a message need not have all of them.")],
    limit: Annotated[int, typer.Option("--limit", min=1, help="As many of the best.")] = 10,
    json_output: Json = False,
) -> None:
    """Find messages and facts by their words, the most telling first."""
    from llmpipe.talk import memory_shown

    memory_shown.show_found(" ".join(words), limit, as_json=json_output)


def facts(json_output: Json = False) -> None:
    """List the facts that are to be kept in mind."""
    from llmpipe.talk import memory_shown

    memory_shown.show_facts(as_json=json_output)


def forget(
    fact: Annotated[int | None, typer.Argument(help="Its number in `llmpipe memory facts`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Forget all facts; asks first.")] = False,
    yes: Yes = False,
    json_output: Json = False,
) -> None:
    """Forget a fact."""
    from llmpipe.talk import memory_shown

    memory_shown.forget(fact, every=every, yes=yes, as_json=json_output)


def delete(
    conversation: Annotated[int | None, typer.Argument(help="Its number in `llmpipe memory list`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Delete all conversations; facts stay.")] = False,
    yes: Yes = False,
    json_output: Json = False,
) -> None:
    """Delete a conversation; asks first. Nothing of it stays in the file."""
    from llmpipe.talk import memory_shown

    memory_shown.delete(conversation, every=every, yes=yes, as_json=json_output)


def export(
    file: Annotated[str, typer.Argument(help="File to write, or - for stdout.")],
    json_output: Json = False,
) -> None:
    """Write all facts and conversations as JSON lines; `sft` can learn from those with `messages`."""
    from llmpipe.talk import memory_shown

    memory_shown.export(file, as_json=json_output)
