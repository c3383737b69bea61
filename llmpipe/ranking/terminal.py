"""Ranking in the terminal: a question at a time, answered by a line.

2>1=3   the second is best, the first and the third are equally good; 213 and 2 1 3 are orders, too
5/2/2   marks, one for each answer, more is better
b s u q  all are bad, skip, undo, quit; c TEXT leaves a comment with what comes next, ? shows the guidelines
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from rich.text import Text

from llmpipe import console
from llmpipe.errors import TalkError
from llmpipe.ranking.asking import Asking, Question
from llmpipe.ranking.records import Verdict, dense
from llmpipe.ranking.sampling import Sampler

KEYS = "order such as 2>1=3, marks such as 5/2/2, b all bad, s skip, u undo, c TEXT comment, ? guidelines, q quit"
LOOK_AGAIN_S = 0.2
VERDICTS: dict[str, Verdict] = {"b": "bad", "s": "skipped"}


def ranks_of(line: str, count: int) -> tuple[int, ...]:
    """Read an order or marks as a rank for each answer; the one answer that an order leaves out is its last.

    Raises:
        TalkError: it is neither, or not of these answers.
    """
    if "/" in line:
        marks = [part.strip() for part in line.split("/")]
        if len(marks) != count or not all(mark.isdecimal() for mark in marks):
            raise TalkError(f"marks are {count} numbers, one for each answer", hint="/".join("52341"[:count]))
        return dense([-int(mark) for mark in marks])
    if not re.fullmatch(r"[\d\s,>=]+", line):
        raise TalkError(f"{line!r} is no order and no command", hint=KEYS)
    places: dict[int, int] = {}
    rank = 0
    for mark, digit in re.findall(r"([\s,>=]*)(\d)", line):
        rank += "=" not in mark or not places
        if not 1 <= int(digit) <= count:
            raise TalkError(f"there is no answer {digit}; there are {count}")
        if int(digit) in places:
            raise TalkError(f"answer {digit} is there twice")
        places[int(digit)] = rank
    missing = set(range(1, count + 1)) - set(places)
    if len(missing) > 1:
        raise TalkError(f"answers {', '.join(map(str, sorted(missing)))} have no place", hint="2>1=3 places three")
    return tuple(places.get(number, rank + 1) for number in range(1, count + 1))


def rank_here(asking: Asking, sampler: Sampler | None, ask: Callable[[str], str]) -> None:
    """Ask until all is ranked or the annotator leaves; what was said is kept at once.

    Raises:
        LlmpipeError: sampling failed and nothing is left to rank, or the store cannot be written.
    """
    question, comment = asking.next(), ""
    while True:
        if question is None:
            if sampler is None or not sampler.is_alive() or not asking.is_waiting:
                break
            with console.err.status("answers are sampled"):
                time.sleep(LOOK_AGAIN_S)
            question = asking.next()
            continue
        comment = comment or question.comment
        show(question)
        begun = time.monotonic()
        try:
            line = ask(f"{question.criterion}> ").strip()
        except (EOFError, KeyboardInterrupt):
            line = "q"
        if line == "q":
            console.say("  what was ranked is kept; the same command goes on from here")
            return
        try:
            question, comment = _obeyed(asking, question, line, comment, time.monotonic() - begun)
        except TalkError as wrong:
            console.error(wrong)
    if sampler is not None and sampler.failure is not None:
        raise sampler.failure
    console.say("  all is ranked")


def _obeyed(asking: Asking, question: Question, line: str, comment: str, seconds: float) -> tuple[Question | None, str]:
    """Do what a line says; return the next question, and the comment that waits for its ranking."""
    if line == "u":
        before = asking.undo()
        if before is None:
            raise TalkError("there is nothing to undo")
        return before, ""
    if line == "?":
        console.say(f"  {question.guideline or 'there are no guidelines for this'}")
        return question, comment
    if line.startswith("c "):
        console.say("  it will be kept with what you say of these answers")
        return question, line[2:].strip()
    verdict: Verdict = VERDICTS.get(line, "ranked")
    ranks = ranks_of(line, len(question.answers)) if verdict == "ranked" else None
    asking.keep(question.id, verdict, ranks, comment=comment, seconds=round(seconds, 1))
    return asking.next(), ""


def show(question: Question) -> None:
    """Show a question: what was asked, the answers by number, and the keys."""
    console.say(f"\n{question.done + 1} of {question.of} · {question.criterion}", style="bold")
    if question.guideline:
        console.say(f"  {question.guideline}", style="dim")
    for turn in question.messages:
        console.say(f"\n  {turn['role']}: {turn['content']}")
    for number, text in enumerate(question.answers, 1):
        console.err.print(Text.assemble((f"\n{number}  ", "bold cyan"), console.clean(text)))
    if question.before:
        console.say(f"\n  you said: {_order(question.before)}", style="dim")
    console.say(f"\n  {KEYS}", style="dim")


def _order(ranks: tuple[int, ...]) -> str:
    """Write ranks as an order, such as 2>1=3."""
    groups = [[n for n, rank in enumerate(ranks, 1) if rank == place] for place in sorted(set(ranks))]
    return ">".join("=".join(map(str, group)) for group in groups)
