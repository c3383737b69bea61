"""chat: talk to a model in the terminal, or have it answer what comes through a pipe.

llmpipe chat runs/quickstart
echo "Tell me a story about a duck and a shoe." | llmpipe chat runs/quickstart:ppo
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llmpipe import console
from llmpipe.errors import UsageError
from llmpipe.inspection import models_of
from llmpipe.moderation.opening import moderator as opened_moderator
from llmpipe.talk import comparing
from llmpipe.talk.attachments import Attachment
from llmpipe.talk.engine import Engine, Finish, Sampling
from llmpipe.talk.equipping import Tools, equipped
from llmpipe.talk.kit import Asks, nobody
from llmpipe.talk.moderated import moderated
from llmpipe.talk.opening import ADDRESS, opened
from llmpipe.talk.parts import Note, Parts
from llmpipe.talk.screen import Screen
from llmpipe.talk.session import Session

if TYPE_CHECKING:
    from llmpipe.talk.memory import Memory


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for. `continued` is a conversation's number, or "last"."""

    model: str
    system: str | None
    sampling: Sampling
    memory: Path | None = None
    keeps: bool = True
    continued: int | str | None = None
    key_variable: str | None = None
    tools: Tools = field(default_factory=Tools)
    moderation: str = "off"


@dataclass
class Chat:
    """What the commands work on: the session, how other models are loaded, how a question is put to the user."""

    session: Session
    model: str
    load: Callable[[str], Engine]
    ask: Callable[[str], str]
    attached: list[Attachment] = field(default_factory=list)
    compared: comparing.Compared | None = None
    others: dict[str, Engine] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Say something to the model, with the files that wait, and show the answer."""
        files, self.attached = self.attached, []
        self.show(self.session.say(text, files))

    def show(self, parts: Parts) -> None:
        """Show an answer as it comes; Ctrl-C ends it, and what there is of it stays."""
        screen, finish = Screen(console.out), None
        try:
            with closing(parts):
                for part in parts:
                    if isinstance(part, Note):
                        screen.end()
                        console.say(f"  {part.text}", style="dim")
                    elif part.note:
                        screen.end()
                        console.say(f"  {part.note}", style="yellow")
                    else:
                        screen.write(part.text)
                        finish = part.finish or finish
        except KeyboardInterrupt:
            screen.end()
            kept = "what was said until then is kept" if self.session.answer else "nothing was said yet"
            console.say(f"\n  stopped: {kept}; /retry asks again", style="dim")
            return
        finally:
            screen.end()
        self._say_how_it_ended(finish)

    def _say_how_it_ended(self, finish: Finish | None) -> None:
        if not self.session.answer:
            console.say("  the model says nothing; /retry asks again", style="dim")
        elif finish == "length":
            console.say("  cut off: --max-new-tokens or the context is full", style="dim")

    def other(self, name: str) -> Engine:
        """Open another model, once: a stage of the same run, or what has a colon or a slash in its name."""
        run = self.run()
        if run is not None and ":" not in name and "/" not in name:
            name = f"{run}:{name}"
        if name not in self.others:
            self.others[name] = self.load(name)
        return self.others[name]

    def run(self) -> Path | None:
        """Return the run that the model is of."""
        for name in (self.model, self.model.rpartition(":")[0]):
            if name and (Path(name) / "recipe.yaml").is_file():
                return Path(name)
        return None

    def stages(self) -> list[str]:
        """Return the stages of the run that made a language model."""
        run = self.run()
        return models_of(run) if run else []

    def begin_anew(self) -> None:
        """Delete this conversation and begin another with the same model."""
        old = self.session
        if old.memory is not None and old.conversation is not None:
            old.memory.delete(old.conversation)
        kit = old.kit.afresh() if old.kit else None
        self.session = Session(old.engine, old.memory, system=old.system, sampling=old.sampling, kit=kit)
        self.compared = None


def chat(wanted: Wanted, *, as_json: bool) -> None:
    """Talk at a terminal; elsewhere answer what stdin says, all of it one message, on stdout.

    What comes through a pipe is kept only where a memory or a conversation is named.

    Raises:
        LlmpipeError: there is no such model or conversation, or there is nothing to answer.
    """
    at_terminal = sys.stdin.isatty()
    if at_terminal and (as_json or not sys.stdout.isatty()):
        raise UsageError("at a terminal there is nothing to answer", hint=f"echo hi | llmpipe chat {wanted.model}")
    text = "" if at_terminal else _stdin(wanted.model)
    moderator = opened_moderator(wanted.moderation)
    with ExitStack() as stack:
        memory = _memory(wanted, stack, keeps=at_terminal or bool(wanted.memory or wanted.continued))
        conversation = _continued(wanted.continued, memory)

        def load(name: str) -> Engine:
            is_key_for_it = name == wanted.model or name.startswith(ADDRESS)
            with console.err.status(f"loading {name}"):
                key_variable = wanted.key_variable if is_key_for_it else None
                return moderated(stack.enter_context(opened(name, key_variable=key_variable)), moderator)

        engine = load(wanted.model)
        kit = stack.enter_context(equipped(wanted.tools, [engine], asks=_asks(at_terminal), all_there=at_terminal))
        for note in kit.toolbox.notes:
            console.say(f"  {note}", style="dim")
        session = Session(
            engine, memory, system=wanted.system, sampling=wanted.sampling, conversation=conversation, kit=kit
        )
        if at_terminal:
            from llmpipe.talk.terminal import converse

            converse(session, wanted, load)
        else:
            _answer(session, text, as_json=as_json)


def _asks(at_terminal: bool) -> Asks:
    """Return who allows calls of tools: the user at the terminal, else nobody."""
    if not at_terminal:
        return nobody
    from llmpipe.talk.terminal import consent

    return consent


def _stdin(model: str) -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("stdin is no text in UTF-8") from error
    if not text.strip():
        raise UsageError("there is nothing to answer", hint=f"echo hi | llmpipe chat {model}")
    return text.strip("\n")


def _memory(wanted: Wanted, stack: ExitStack, *, keeps: bool) -> Memory | None:
    if not wanted.keeps or not keeps:
        return None
    from llmpipe.talk.memory import Memory, default_path

    return stack.enter_context(Memory(wanted.memory or default_path()))


def _continued(which: int | str | None, memory: Memory | None) -> int | None:
    """Find the conversation that is to go on, and say which it is."""
    if which is None or memory is None:
        return None
    if which == "last":
        newest = memory.conversations(limit=1)
        if not newest:
            raise UsageError("there is no conversation to continue yet", hint="leave out --continue")
        which = newest[0].id
    found = memory.conversation(int(which))
    console.say(f"  conversation {found.id} goes on: {found.title}", style="dim")
    return found.id


def _answer(session: Session, text: str, *, as_json: bool) -> None:
    """Answer one message: the text as it comes, or one JSON document."""
    said, finish, usage = [], None, None
    with closing(session.say(text)) as parts:
        for part in parts:
            if isinstance(part, Note):
                console.say(f"  {part.text}", style="dim")
                continue
            if part.note:
                console.say(f"  {part.note}", style="yellow")
            said.append(console.clean(part.text))
            finish, usage = part.finish or finish, part.usage or usage
            if not as_json:
                console.part(said[-1])
    if not as_json:
        console.part("" if "".join(said).endswith("\n") else "\n")
        return
    tokens = usage and {"prompt": usage.prompt_tokens, "answer": usage.answer_tokens}
    console.as_json({"model": session.engine.name, "answer": "".join(said), "finish": finish, "tokens": tokens})
