"""Commands that say which answer is better, or that one is good or bad: what `llmpipe rank RUN --export` writes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from llmpipe import console
from llmpipe.errors import TalkError
from llmpipe.ranking import feedback
from llmpipe.talk.engine import Piece

if TYPE_CHECKING:
    from llmpipe.talk.repl import Chat

BEST = {"1": (0,), "2": (1,), "=": (0, 1), "0": ()}
"""What may be said of two answers: the places of the best."""
SIDE_BY_SIDE = 72
"""Columns from which on two answers stand beside each other."""


@dataclass(frozen=True)
class Compared:
    """Two models' answers to the same prompt: model and text of each."""

    prompt: list[dict[str, object]]
    answers: tuple[tuple[str, str], tuple[str, str]]


def compare(chat: Chat, name: str) -> None:
    """Have another stage answer the last question, and show both answers."""
    if not name:
        there = f": {', '.join(chat.stages())}" if chat.stages() else ""
        raise TalkError(f"which stage is to answer, too?{there}", hint="/compare STAGE, or a folder or hub:ID")
    if chat.session.answer is None:
        raise TalkError("there is no answer to compare yet", hint="say something first")
    other = chat.other(name)
    with console.err.status(f"{name} answers"):
        parts = [part.text for part in chat.session.asked_of(other) if isinstance(part, Piece)]
    answers = ((chat.session.engine.name, chat.session.answer), (other.name, "".join(parts)))
    chat.compared = Compared(chat.session.asked, answers)
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


def rank(chat: Chat, name: str) -> None:
    """Ask which of two answers is better, and keep it."""
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
    answer = feedback.Told(chat.session.asked, chat.session.engine.name, chat.session.answer)
    _say_kept(feedback.keep_thumb(answer, is_good=is_good, beside=_beside(chat)), "labels.jsonl --as kto")


def good(chat: Chat, _: str) -> None:
    """Keep that the answer is good."""
    _thumb(chat, is_good=True)


def bad(chat: Chat, _: str) -> None:
    """Keep that it is bad."""
    _thumb(chat, is_good=False)


def _beside(chat: Chat) -> Path:
    """Return where what is said of models that are of no run is kept."""
    from llmpipe.talk.memory import default_path

    return (chat.session.memory.path if chat.session.memory else default_path()).parent


def _say_kept(path: Path, file: str) -> None:
    run = path.parent if (path.parent / "recipe.yaml").is_file() else path
    console.say(f"  kept in {path.absolute()}")
    console.say(f"  llmpipe rank {run} --export {file} makes it data to learn from", style="dim")
