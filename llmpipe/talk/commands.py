"""What may be typed after a slash in `llmpipe chat`: COMMANDS lists it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmpipe import console
from llmpipe.errors import LlmpipeError, TalkError, did_you_mean
from llmpipe.talk import attachments, comparing, kept
from llmpipe.talk.equipping import refuse_missing
from llmpipe.talk.kit import Kit
from llmpipe.talk.moderated import Moderated
from llmpipe.talk.session import MODES
from llmpipe.tools.documents import READERS
from llmpipe.tools.toolbox import NAMES

if TYPE_CHECKING:
    from llmpipe.talk.memory import Memory
    from llmpipe.talk.repl import Chat

FOUND = 10


class Leave(Exception):
    """The user wants to go."""


@dataclass(frozen=True)
class Command:
    """What is done, what may follow the name, and what it is for."""

    run: Callable[[Chat, str], None]
    argument: str
    help: str


def run(chat: Chat, line: str) -> None:
    """Do what a line says that begins with a slash.

    Raises:
        LlmpipeError: there is no such command, or it cannot be done.
        Leave: it was /quit.
    """
    name, _, argument = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        near = did_you_mean(name, list(COMMANDS)) or "; /help lists what there is"
        raise TalkError(f"there is no command {name}{near}", hint="a space before it sends it to the model")
    command.run(chat, argument.strip())


def try_run(chat: Chat, line: str) -> None:
    """Do what a line says; what goes wrong is shown, and the chat goes on."""
    try:
        run(chat, line)
    except LlmpipeError as failure:
        console.error(failure)


def _help(_: Chat, __: str) -> None:
    rows = [(f"{name} {command.argument}".strip(), command.help) for name, command in COMMANDS.items()]
    if console.err.width >= comparing.SIDE_BY_SIDE:
        console.show(console.table(rows))
    else:
        for usage, told in rows:
            console.say(f"  {usage}", style="bold")
            console.say(_indented(told))
    console.say("  Alt-Enter, or \\ at the end: a new line", style="dim")
    console.say("  Ctrl-C: stop an answer, clear the line", style="dim")
    console.say("  Ctrl-D: leave", style="dim")


def _indented(text: str) -> str:
    return textwrap.fill(text, console.err.width - 1, initial_indent="    ", subsequent_indent="    ")


def _system(chat: Chat, text: str) -> None:
    if text:
        chat.session.system = None if text == "off" else text
    if chat.session.system and not chat.session.engine.chats:
        raise TalkError(f"{chat.session.engine.name} knows no turns, so it reads no system text")
    console.say(f"  system: {chat.session.system or 'none'}")


def _mode(chat: Chat, name: str) -> None:
    if name:
        chat.session.mode = name
    names = [f"{one} (now)" if one == chat.session.mode else one for one in MODES]
    console.say(f"  {', '.join(names)}")


def _tools(chat: Chat, words: str) -> None:
    kit = _kit_of(chat)
    what, _, name = words.partition(" ")
    if words:
        if what not in ("on", "allow", "off") or not name:
            raise TalkError(f"/tools {words} says nothing of a tool", hint="/tools on NAME, allow NAME or off NAME")
        if what == "off":
            kit.turn_off(name)
        else:
            if name in NAMES and name not in kit.toolbox.tools:
                refuse_missing(name)
            kit.turn_on(name, is_allowed=what == "allow")
    console.show(console.table([(tool.name, kit.state(tool)) for tool in kit.toolbox.tools.values()]))
    if not words:
        console.say("  /tools on NAME: the model may ask for it; allow NAME: it need not; off NAME", style="dim")


def _kit_of(chat: Chat) -> Kit:
    if chat.session.kit is None or not chat.session.engine.chats:
        raise TalkError(f"{chat.session.engine.name} knows no turns, so it calls no tools")
    return chat.session.kit


def _appeal(chat: Chat, text: str) -> None:
    engine = chat.session.engine
    if not isinstance(engine, Moderated):
        raise TalkError("nothing is moderated here", hint="--moderation default, or a policy of your own")
    if text and engine.refused and not text.startswith("m-"):
        text = f"{engine.refused} {text}"
    console.say(f"  {engine.moderator.appeal(f'/appeal {text}')}")


def _attach(chat: Chat, name: str) -> None:
    if name:
        _take_file(chat, Path(name.strip("'\"")).expanduser())
    for file in chat.attached:
        console.say(f"  {file.name}, {len(file.text):,} characters: goes along with what you say next")
    if not name and not chat.attached:
        console.say("  nothing is attached")


def _take_file(chat: Chat, path: Path) -> None:
    """Send a file along, or let the model read it: one that is no plain text, or too large to be sent."""
    kind = path.suffix.lower()
    is_sent = kind in attachments.LANGUAGES and not (path.is_file() and path.stat().st_size > attachments.MOST_BYTES)
    if is_sent or kind not in READERS or not chat.session.engine.chats or chat.session.kit is None:
        chat.attached.append(attachments.read(path))
        return
    chat.session.kit.name_file(path)
    console.say(f"  {path.name}: the model may read it, by the tool read_file")


def _memory(chat: Chat, text: str) -> None:
    memory = _of(chat)
    word, _, rest = text.partition(" ")
    if word == "remember":
        memory.remember(rest)
        text = ""
    if text:
        _search(memory, text)
        return
    for fact in memory.facts():
        console.say(f"  {fact.id}  {fact.text}")
    if not memory.facts():
        console.say("  no fact is kept; /memory remember TEXT keeps one")


def _search(memory: Memory, words: str) -> None:
    """Show the facts and the messages with these words, a line each."""
    facts, messages = memory.facts(words), memory.search(words, limit=FOUND)
    width = max(20, console.err.width - 4)
    for fact in facts:
        console.say("  " + textwrap.shorten(f"fact {fact.id}: {fact.text}", width, placeholder=" …"))
    for found in messages:
        line = f"{found.conversation} · {found.when[:10]} · {found.role}: {found.content}"
        console.say("  " + textwrap.shorten(line, width, placeholder=" …"))
    if messages:
        console.say("  the first number is the conversation: llmpipe chat … --conversation N", style="dim")
    if not facts and not messages:
        console.say("  nothing is found")


def _forget(chat: Chat, what: str) -> None:
    memory = _of(chat)
    if what == "this":
        chat.begin_anew()
        console.say("  this conversation is forgotten")
    elif not what.isdecimal():
        raise TalkError("what is to be forgotten?", hint="/forget N, a fact that /memory shows, or /forget this")
    elif not memory.forget(int(what)):
        raise TalkError(f"there is no fact {what}", hint="/memory shows those there are")
    else:
        console.say(f"  fact {what} is forgotten")


def _of(chat: Chat) -> Memory:
    if chat.session.memory is None:
        raise TalkError("this chat has no memory", hint="leave out --no-memory")
    return chat.session.memory


def _save(chat: Chat, name: str) -> None:
    if not name:
        raise TalkError("where to?", hint="/save chats.jsonl")
    path = Path(name).expanduser()
    kept.append(path, kept.conversation(chat.session.messages))
    console.say(f"  appended to {path.absolute()}")
    console.say(f"  llmpipe sft … --data {path} learns from it", style="dim")


def _retry(chat: Chat, _: str) -> None:
    if chat.session.sampling.temperature == 0:
        console.say("  the temperature is 0: the same answer is likeliest again", style="dim")
    chat.show(chat.session.retry())


def _undo(chat: Chat, _: str) -> None:
    question = textwrap.shorten(chat.session.undo(), max(20, console.err.width - 16), placeholder=" …")
    console.say(f"  taken back: {question}")


def _quit(_: Chat, __: str) -> None:
    raise Leave


COMMANDS = {
    "/system": Command(_system, "[TEXT | off]", "say how the model is to be, or show it"),
    "/mode": Command(_mode, "[NAME]", "how answers are made"),
    "/tools": Command(_tools, "[on | allow | off NAME]", "what the model may use, and what it has to ask for"),
    "/attach": Command(_attach, "[FILE]", f"send a file along, or let it be read: {', '.join(READERS)}"),
    "/memory": Command(_memory, "[WORDS | remember TEXT]", "show facts, search what was said, keep a fact"),
    "/forget": Command(_forget, "N | this", "delete a fact, or this conversation"),
    "/compare": Command(comparing.compare, "STAGE", "have another stage answer it, too"),
    "/rank": Command(comparing.rank, "", "say which answer is better, for reward"),
    "/good": Command(comparing.good, "", "find the answer good, for kto"),
    "/bad": Command(comparing.bad, "", "find it bad"),
    "/save": Command(_save, "FILE", "append the conversation, for sft"),
    "/retry": Command(_retry, "", "answer the last question again"),
    "/undo": Command(_undo, "", "take the last question and its answer back"),
    "/appeal": Command(_appeal, "[REFERENCE] WHY", "say why it was wrong to hold a text back"),
    "/help": Command(_help, "", "this list"),
    "/quit": Command(_quit, "", "leave"),
}
