"""Turn rows of the usual chat formats into conversations, and rows with text into plain texts.

`FORMATS` says which columns each format needs and which small function converts it; the format is told from
the columns of the first row. Converters note what is wrong and go on, so that one pass shows every problem.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

from llmpipe.data import Cells, Message, Problems, Row, decode, disorder, kind, said, turn_message
from llmpipe.errors import DataError, Problem, UsageError, did_you_mean

__all__ = ["FORMATS", "Conversation", "Format", "Message", "conversations", "detect", "texts"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one row teaches: messages, and the tools they may call as JSON; or else a plain `text`."""

    messages: list[Message]
    tools: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Format:
    """A row format: the columns it needs, those it also reads, and its converter."""

    needs: tuple[str, ...]
    also: tuple[str, ...]
    about: str
    convert: Callable[[Cells], Conversation]


def detect(columns: Collection[str], *, where: str) -> str:
    """Return the name of the format with these columns; of several, the one that needs most of them."""
    found = _fitting(columns)
    if found:
        return found
    lines = [f"no format fits the columns {', '.join(columns) or '(none)'}; one of these is needed:"]
    for name, form in FORMATS.items():
        spare = [column for column in columns if column not in form.needs]
        missing = [need for need in form.needs if need not in columns]
        near = [f" (is {got} {need}?)" for need in missing for got in get_close_matches(need, spare, 1, 0.75)]
        lines.append(f"  {name}: {', '.join(form.needs)}{''.join(near)}")
    raise DataError(Problem("\n".join(lines), where), hint="say which column is which with `columns`")


def conversations(
    rows: Iterable[Row],
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    limit_problems: int = 20,
) -> Iterator[tuple[Row, Conversation]]:
    """Yield each good row with its conversation, then raise one DataError with the problems of all rows.

    `columns` gives the user's name for a column of ours. The format is told from the first row unless it is
    given; a first row that fits none is raised at once, for nothing after it could be read either.
    """
    names = dict(columns or {})
    _check_choice(names, format)
    problems, unseen, empty = Problems(limit_problems), set(names), True
    for row in problems.watch(rows):
        empty = False
        unseen -= {ours for ours in unseen if names[ours] in row.value}
        cells = _renamed(row, names)
        format = format or _detect_first(row, cells, unseen)
        absent = [column for column in FORMATS[format].needs if column not in cells.value]
        conversation = Conversation([]) if absent else FORMATS[format].convert(cells)
        if absent:
            cells.wrong.append(_absence(absent, cells, row, format))
        if cells.wrong:
            problems.add(*(Problem(wrong, row.where) for wrong in cells.wrong))
        else:
            yield row, conversation
    if not empty:
        problems.add(*(Problem(f"no row has the column {names[o]!r}, meant as {o}") for o in sorted(unseen)))
    problems.raise_any()
    if empty:
        raise DataError("there are no rows to learn from")


def texts(rows: Iterable[Row], *, column: str | None = None, limit_problems: int = 20) -> Iterator[str]:
    """Yield the texts of rows for pretraining, without the empty ones, then raise the problems of all rows.

    The column is the one given, else `text`, else `content`, else the only one with text in the first row.
    """
    problems, kept = Problems(limit_problems), 0
    for row in problems.watch(rows):
        column = column or _text_column(row)
        text = row.value.get(column)
        if column not in row.value:
            what = f"the column {column!r} is missing{did_you_mean(column, list(row.value))}"
            problems.add(Problem(what, row.where))
        elif not isinstance(text, str):
            problems.add(Problem(f"{column} is {kind(text)}, not text", row.where))
        elif text.strip():
            kept += 1
            yield text
    problems.raise_any()
    if not kept:
        raise DataError(f"there is no text: {column} is empty in all rows" if column else "there are no rows")


def _check_choice(names: Mapping[str, str], format: str | None) -> None:
    """Refuse a format, or a column to rename, that there is not."""
    if format is not None and format not in FORMATS:
        near = did_you_mean(format, list(FORMATS)) or f"; known are {', '.join(FORMATS)}"
        raise UsageError(f"there is no format {format!r}{near}")
    forms = [FORMATS[format]] if format else list(FORMATS.values())
    known = sorted({column for form in forms for column in (*form.needs, *form.also)})
    wrong = [f"no format reads a column {n!r}{did_you_mean(n, known)}" for n in names if n not in known]
    if wrong:
        raise UsageError([*map(Problem, wrong)], hint="`columns` maps ours to yours, as in {instruction: question}")


def _renamed(row: Row, names: Mapping[str, str]) -> Cells:
    """Return the row under our names; a column of the user's that happens to have our name gives way."""
    kept = {name: cell for name, cell in row.value.items() if name not in names and name not in names.values()}
    return Cells(kept | {ours: row.value[theirs] for ours, theirs in names.items() if theirs in row.value}, names)


def _detect_first(row: Row, cells: Cells, unseen: Collection[str]) -> str:
    """Tell the format from the first row; where none fits, a renamed column that is missing is the cause."""
    missing = [cells.name(ours) for ours in sorted(unseen)] if not _fitting(cells.value) else []
    near = [f"there is no column {name!r}{did_you_mean(name, list(row.value))}" for name in missing]
    if near:
        raise DataError([Problem(what, row.where) for what in near])
    return detect(cells.value, where=row.where)


def _fitting(columns: Collection[str]) -> str | None:
    fits = [name for name, form in FORMATS.items() if set(form.needs) <= set(columns)]
    return max(fits, key=lambda name: len(FORMATS[name].needs), default=None)


def _absence(absent: list[str], cells: Cells, row: Row, format: str) -> str:
    names = [cells.name(column) for column in absent]
    what = f"the column{'s' * (len(names) > 1)} {', '.join(map(repr, names))} {'are' if absent[1:] else 'is'}"
    other = _fitting(cells.value)
    near = f"; the row looks like {other}, not {format}" if other else did_you_mean(names[0], list(row.value))
    return f"{what} missing{near}"


def _text_column(row: Row) -> str:
    strings = [name for name, cell in row.value.items() if isinstance(cell, str)]
    usual = [name for name in ("text", "content") if name in row.value]
    if usual or len(strings) == 1:
        return (usual or strings)[0]
    what = f"cannot tell which column holds the text: {', '.join(row.value)}"
    raise DataError(Problem(f"{what}; name it with `column`", row.where))


def _turns(cells: Cells, column: str) -> list[Message]:
    turns, name = cells.value[column], cells.name(column)
    if isinstance(turns, list):
        return [turn_message(turn, f"{name} turn {number}", cells.wrong) for number, turn in enumerate(turns, 1)]
    cells.wrong.append(f"{name} is {kind(turns)}, not a list of turns")
    return []


def _chat(cells: Cells, messages: list[Message]) -> Conversation:
    """Add the system and the tools column to the turns, and check the whole."""
    system, tools = cells.text("system", needed=False), cells.value.get("tools")
    listing = json.dumps(tools, ensure_ascii=False) if isinstance(tools, (list, dict)) else ""
    listing = listing or cells.text("tools", needed=False)
    try:
        some = bool(listing.strip() and decode(listing))
    except (ValueError, RecursionError):
        some = False
        cells.wrong.append(f"{cells.name('tools')} is not JSON")
    if not cells.wrong:  # order can only be judged once every role is known
        cells.wrong.extend(disorder(messages))
    spoken = [message for message in messages if message["content"].strip() or message["role"] == "tool"]
    if system.strip():
        if spoken and spoken[0]["role"] == "system":
            cells.wrong.append(f"there is a system prompt in turn 1 and in {cells.name('system')}; keep one")
        spoken.insert(0, said("system", system))
    return Conversation(spoken, listing if some else None)


def _question(cells: Cells, *, asks: tuple[str, ...], answer: str) -> Conversation:
    """Join the columns of the question; earlier rounds may stand in a history column."""
    rounds = cells.value.get("history") or []
    if not isinstance(rounds, list) or not all(map(_is_round, rounds)):
        cells.wrong.append(f"{cells.name('history')} is not a list of pairs of texts, question and answer")
        rounds = []
    earlier = [said(role, text) for pair in rounds for role, text in zip(("user", "assistant"), pair, strict=True)]
    parts = [cells.text(column, needed=column == asks[0]) for column in asks]
    ask = "\n\n".join(part for part in parts if part.strip())
    return _chat(cells, [*earlier, said("user", ask), said("assistant", cells.text(answer))])


def _is_round(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) and text.strip() for text in pair)


def _listed(cells: Cells, *, column: str) -> Conversation:
    return _chat(cells, _turns(cells, column))


def _prompt_completion(cells: Cells) -> Conversation:
    """Take loss on the completion only, even where the prompt has answers in it."""
    prompt, completion = (
        _turns(cells, column) if isinstance(cells.value[column], list) else [said(role, cells.text(column))]
        for column, role in (("prompt", "user"), ("completion", "assistant"))
    )
    for message in prompt:
        message["train"] = False
    return _chat(cells, prompt + completion)


def _plain(cells: Cells) -> Conversation:
    return Conversation([], text=cells.text("text"))


_alpaca = partial(_question, asks=("instruction", "input"), answer="output")
_dolly = partial(_question, asks=("instruction", "context"), answer="response")
_question_answer = partial(_question, asks=("question",), answer="answer")
_sharegpt = partial(_listed, column="conversations")
_messages = partial(_listed, column="messages")

CHAT = ("system", "tools")
TOLD = ("history", *CHAT)
FORMATS: dict[str, Format] = {
    "alpaca": Format(("instruction", "output"), ("input", *TOLD), "a task, often with input, and its answer", _alpaca),
    "dolly": Format(
        ("instruction", "response"), ("context", *TOLD), "a task, often with context, and its answer", _dolly
    ),
    "question-answer": Format(("question", "answer"), TOLD, "a question and its answer", _question_answer),
    "prompt-completion": Format(("prompt", "completion"), CHAT, "texts or lists of turns", _prompt_completion),
    "sharegpt": Format(("conversations",), CHAT, "a list of turns with from and value", _sharegpt),
    "messages": Format(("messages",), CHAT, "a list of turns with role and content", _messages),
    "text": Format(("text",), (), "plain text, learnt as a whole", _plain),
}
"""The formats by name, as `detect` tries them and help lists them."""
