"""What `llmpipe memory` does: looks into the memory, and deletes, each after asking where much would go."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import typer

from llmpipe import console
from llmpipe.errors import TalkError, UsageError
from llmpipe.talk.memory import Memory, default_path
from llmpipe.talk.words import excerpt


@contextmanager
def _memory() -> Iterator[Memory]:
    with Memory(default_path()) as memory:
        yield memory


def show_conversations(limit: int, *, as_json: bool) -> None:
    """List the newest conversations."""
    with _memory() as memory:
        found = memory.conversations(limit)
    if as_json:
        console.as_json({"memory": str(memory.path), "conversations": [asdict(one) for one in found]})
    elif not found:
        console.say(f"no conversation is kept in {memory.path}")
    else:
        rows = [(str(one.id), _minute(one.when), f"{one.turns}", one.model, one.title) for one in found]
        console.show(
            console.table(rows, header=("id", "when", "turns", "model", "title"), right=(0, 2)), to_stdout=True
        )


def show_conversation(conversation: int, *, as_json: bool) -> None:
    """Print what was said in a conversation."""
    with _memory() as memory:
        told, messages = memory.conversation(conversation), memory.messages(conversation)
    if as_json:
        console.as_json(asdict(told) | {"messages": [asdict(one) for one in messages]})
        return
    console.say(f"{told.title}  ({told.model}, {_minute(told.when)})", style="bold")
    for one in messages:
        console.data(console.clean(f"\n{one.role}: {one.content}"))


def show_found(query: str, limit: int, *, as_json: bool) -> None:
    """Show messages and facts that have words of the query."""
    with _memory() as memory:
        messages, facts = memory.search(query, limit=limit), memory.facts(about=query)[:limit]
    if as_json:
        found = {"messages": [asdict(one) for one in messages], "facts": [asdict(one) for one in facts]}
        console.as_json(found)
        return
    if not messages and not facts:
        console.say("nothing was found")
        return
    rows = [(f"fact {one.id}", _minute(one.when), excerpt(one.text, query)) for one in facts]
    rows += [
        (f"conversation {one.conversation}", _minute(one.when), f"{one.role}: {excerpt(one.content, query)}")
        for one in messages
    ]
    console.show(console.table(rows), to_stdout=True)


def show_facts(*, as_json: bool) -> None:
    """List the facts."""
    with _memory() as memory:
        facts = memory.facts()
    if as_json:
        console.as_json({"facts": [asdict(fact) for fact in facts]})
    elif not facts:
        console.say("no fact is kept; in a chat, /memory remember TEXT keeps one")
    else:
        rows = [(str(fact.id), _minute(fact.when), fact.text) for fact in facts]
        console.show(console.table(rows, right=(0,)), to_stdout=True)


def forget(fact: int | None, *, every: bool, yes: bool, as_json: bool) -> None:
    """Forget a fact, or all of them after asking.

    Raises:
        UsageError: neither a number nor --all is given, or both, or there is nobody to ask.
        TalkError: there is no such fact.
    """
    _one_or_all(fact, every=every, command="forget", what="fact")
    with _memory() as memory:
        if fact is not None:
            if not memory.forget(fact):
                raise TalkError(f"there is no fact {fact}", hint="llmpipe memory facts shows those there are")
            count = 1
        else:
            agreed = yes or _agreed(f"forget all {len(memory.facts())} facts?", "llmpipe memory forget --all --yes")
            count = memory.forget_all() if agreed else 0
    _tell(count, "fact", "forgotten", as_json=as_json)


def delete(conversation: int | None, *, every: bool, yes: bool, as_json: bool) -> None:
    """Delete a conversation, or all of them, after asking.

    Raises:
        UsageError: neither a number nor --all is given, or both, or there is nobody to ask.
        TalkError: there is no such conversation.
    """
    _one_or_all(conversation, every=every, command="delete", what="conversation")
    with _memory() as memory:
        if conversation is not None:
            told = memory.conversation(conversation)
            question = f"delete conversation {told.id}, {told.title!r} of {told.turns} turns?"
            agreed = yes or _agreed(question, f"llmpipe memory delete {told.id} --yes")
            if agreed:
                memory.delete(conversation)
            count = int(agreed)
        else:
            question = f"delete all {len(memory.conversations(-1))} conversations?"
            agreed = yes or _agreed(question, "llmpipe memory delete --all --yes")
            count = memory.delete_all() if agreed else 0
    _tell(count, "conversation", "deleted", as_json=as_json)


def export(file: str, *, as_json: bool) -> None:
    """Write everything as JSON lines into a new file that only its owner reads, or to stdout for "-".

    Raises:
        UsageError: the file is there, or cannot be written.
    """
    with _memory() as memory:
        if file == "-":
            memory.export(sys.stdout)
            return
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as to:
                count = memory.export(to)
        except FileExistsError:
            raise UsageError(f"{file} is there already", hint="name another file, or - for stdout") from None
        except OSError as error:
            raise UsageError(f"cannot write {file}: {error.strerror}", hint="name another file") from error
    if as_json:
        console.as_json({"file": str(Path(file).absolute()), "lines": count})
    else:
        console.say(f"{count:,} lines are in {file}")


def _one_or_all(number: int | None, *, every: bool, command: str, what: str) -> None:
    if (number is None) != every:
        raise UsageError(f"name one {what}, or --all", hint=f"llmpipe memory {command} 1")


def _agreed(question: str, command: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", hint=command)
    return typer.confirm(f"  {console.clean(question)}", err=True)


def _tell(count: int, what: str, done: str, *, as_json: bool) -> None:
    if as_json:
        console.as_json({done: count})
    else:
        console.say(f"{count} {what}{'' if count == 1 else 's'} {done}")


def _minute(when: str) -> str:
    """Return a time to its minute, UTC."""
    return when[:16].replace("T", " ")
