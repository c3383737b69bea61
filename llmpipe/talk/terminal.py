"""The terminal side of chat: the line that is typed in, its keys and its history."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress

from prompt_toolkit import PromptSession, prompt
from prompt_toolkit.application.current import get_app_session
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.typeahead import clear_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from llmpipe import console
from llmpipe.errors import LlmpipeError
from llmpipe.talk.commands import COMMANDS, Leave, try_run
from llmpipe.talk.engine import Engine
from llmpipe.talk.kit import Answer, Wish
from llmpipe.talk.memory import Memory
from llmpipe.talk.repl import Chat, Wanted
from llmpipe.talk.session import Session

PROMPT = "> "


def converse(session: Session, wanted: Wanted, load: Callable[[str], Engine]) -> None:
    """Read what is typed and show what is answered, until Ctrl-D or /quit."""
    chat = Chat(session, wanted.model, load, _ask)
    line: PromptSession[str] = PromptSession(
        PROMPT,
        history=_history(session.memory),
        key_bindings=_keys(),
        multiline=True,
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
        prompt_continuation="  ",
    )
    console.err.soft_wrap = False  # people read it, no script does: lines end between words
    _greet(session)
    while True:
        console.say("")
        try:
            _turn(chat, line.prompt())
        except (EOFError, Leave):
            return
        except KeyboardInterrupt:  # between an answer and the next line
            continue


def _turn(chat: Chat, text: str) -> None:
    if not text.strip():
        return
    if text.startswith("/"):
        try_run(chat, text)
        return
    try:
        chat.say(text)
    except LlmpipeError as failure:
        console.error(failure)


def _greet(session: Session) -> None:
    """Say what there is to know, and how a conversation that goes on stood."""
    if not session.engine.chats:
        console.say(f"  {session.engine.name} knows no turns: it goes on with each text that you type", style="dim")
    console.say("  /help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves", style="dim")
    for mark, text in ((PROMPT, session.question), ("", session.answer)):
        if text:
            console.say("\n" + textwrap.shorten(mark + text, 400, placeholder=" …"), style="dim")


def _ask(question: str) -> str:
    try:
        return prompt(question)
    except (KeyboardInterrupt, EOFError):
        return ""


def consent(wish: Wish) -> Answer:
    """Ask whether a tool may be called. What was typed before the question was shown is no answer to it."""
    console.say(f"  {wish.tool} {wish.arguments}", style="bold")
    console.say(f"  The model wants this call: {wish.why}.")
    if sys.platform != "win32":
        import termios

        with suppress(termios.error, OSError):
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
    clear_typeahead(get_app_session().input)
    said = _ask("  Allow it? y: once, a: all of them in this conversation, Enter: no ").strip().lower()
    return "once" if said in ("y", "yes") else "conversation" if said in ("a", "all") else "no"


def _keys() -> KeyBindings:
    """Enter sends, but for a line that ends with a backslash; Ctrl-C clears."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return keys


def _history(memory: Memory | None) -> History:
    """Return what was typed before; it is kept beside the memory, for the user alone, where one is."""
    if memory is None:
        return InMemoryHistory()
    path = memory.path.with_name("chat_history")
    path.touch(mode=0o600)
    return FileHistory(str(path))
