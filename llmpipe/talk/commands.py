"""What may be typed after a slash in `llmpipe chat`: COMMANDS lists it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from llmpipe import console
from llmpipe.errors import LlmpipeError, TalkError, did_you_mean
from llmpipe.ranking import feedback
from llmpipe.talk import attachments, kept
from llmpipe.talk.engine import Piece
from llmpipe.talk.session import MODES, NOT_YET

if TYPE_CHECKING:
    from llmpipe.talk.memory import Memory
    from llmpipe.talk.repl import Chat

BEST = {"1": (0,), "2": (1,), "=": (0, 1), "0": ()}
"""What may be said of two answers: the places of the best."""
SIDE_BY_SIDE = 72
"""Columns from which on two answers stand beside each other."""
FOUND = 10


class Leave(Exception):
    """The user wants to go."""


@dataclass(frozen=True)
class Compared:
    """Two models' answers to the same prompt: model and text of each."""

    prompt: list[dict[str, object]]
    answers: tuple[tuple[str, str], tuple[str, str]]


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
    if console.err.width >= SIDE_BY_SIDE:
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
    console.say(f"  {', '.join(names)}; to come: {', '.join(NOT_YET)}")


def _tools(_: Chat, __: str) -> None:
    console.say("  there are no tools yet: a model answers from what it knows and what you tell it")
    console.say("  /attach FILE gives it a text")


def _attach(chat: Chat, name: str) -> None:
    if name:
        chat.attached.append(attachments.read(Path(name.strip("'\"")).expanduser()))
    for file in chat.attached:
        console.say(f"  {file.name}, {len(file.text):,} characters: goes along with what you say next")
    if not chat.attached:
        console.say("  nothing is attached")


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


def _compare(chat: Chat, name: str) -> None:
    if not name:
        there = f": {', '.join(chat.stages())}" if chat.stages() else ""
        raise TalkError(f"which stage is to answer, too?{there}", hint="/compare STAGE, or a folder or hub:ID")
    if chat.session.answer is None:
        raise TalkError("there is no answer to compare yet", hint="say something first")
    other = chat.other(name)
    with console.err.status(f"{name} answers"):
        parts = [part.text for part in chat.session.asked_of(other) if isinstance(part, Piece)]
    answers = ((chat.session.engine.name, chat.session.answer), (other.name, "".join(parts)))
    chat.compared = Compared(chat.session.messages[:-1], answers)
    _show_compared(answers)
    console.say("  /rank says which is better", style="dim")


def _show_compared(answers: tuple[tuple[str, str], tuple[str, str]]) -> None:
    """Show two answers beside each other, or one below the other where there is no room."""
    names = [f"{number}  {model.rpartition(':')[2]}" for number, (model, _) in enumerate(answers, 1)]
    texts = [text for _, text in answers]
    if console.out.width < SIDE_BY_SIDE:
        for name, text in zip(names, texts, strict=True):
            console.out.print(Text(console.clean(name), style="bold"))
            console.out.print(Text(console.clean(text).strip()), soft_wrap=False)
        return
    grid = console.table([[text.strip() for text in texts]], header=names)
    for column in grid.columns:
        column.ratio = 1
    grid.expand = True
    console.show(grid, to_stdout=True)


def _rank(chat: Chat, name: str) -> None:
    if name:
        raise TalkError(f"what is ranked is kept with the run, not in {name}", hint=f"llmpipe rank RUN --export {name}")
    if chat.compared is None:
        raise TalkError("there is nothing to rank yet", hint="/compare STAGE answers the last question once more")
    (_, one), (_, other) = chat.compared.answers
    if one.strip() == other.strip() or not other.strip():
        raise TalkError("the answers are the same, or one is empty: there is nothing to learn from them")
    best = BEST.get(chat.ask("which is better, 1 or 2? (= the same, 0 both bad, Enter: nothing) ").strip())
    if best is None:
        console.say("  nothing is written")
        return
    answers = [feedback.Told(chat.compared.prompt, model, text) for model, text in chat.compared.answers]
    path = feedback.keep_comparison(answers, best, beside=_beside(chat))
    chat.compared = None
    _say_kept(path, "better.jsonl")


def _thumb(chat: Chat, *, is_good: bool) -> None:
    if chat.session.answer is None:
        raise TalkError("there is no answer to judge yet", hint="say something first")
    answer = feedback.Told(chat.session.messages[:-1], chat.session.engine.name, chat.session.answer)
    _say_kept(feedback.keep_thumb(answer, is_good=is_good, beside=_beside(chat)), "labels.jsonl --as kto")


def _good(chat: Chat, _: str) -> None:
    _thumb(chat, is_good=True)


def _bad(chat: Chat, _: str) -> None:
    _thumb(chat, is_good=False)


def _beside(chat: Chat) -> Path:
    """Return where what is said of models that are of no run is kept."""
    from llmpipe.talk.memory import default_path

    return (chat.session.memory.path if chat.session.memory else default_path()).parent


def _say_kept(path: Path, file: str) -> None:
    run = path.parent if (path.parent / "recipe.yaml").is_file() else path
    console.say(f"  kept in {path.absolute()}")
    console.say(f"  llmpipe rank {run} --export {file} makes it data to learn from", style="dim")


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
    "/tools": Command(_tools, "", "what the model may use"),
    "/attach": Command(_attach, "[FILE]", f"send a file along: {attachments.KNOWN}"),
    "/memory": Command(_memory, "[WORDS | remember TEXT]", "show facts, search what was said, keep a fact"),
    "/forget": Command(_forget, "N | this", "delete a fact, or this conversation"),
    "/compare": Command(_compare, "STAGE", "have another stage answer it, too"),
    "/rank": Command(_rank, "", "say which answer is better, for reward"),
    "/good": Command(_good, "", "find the answer good, for kto"),
    "/bad": Command(_bad, "", "find it bad"),
    "/save": Command(_save, "FILE", "append the conversation, for sft"),
    "/retry": Command(_retry, "", "answer the last question again"),
    "/undo": Command(_undo, "", "take the last question and its answer back"),
    "/help": Command(_help, "", "this list"),
    "/quit": Command(_quit, "", "leave"),
}
