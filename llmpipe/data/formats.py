"""Turn rows of the usual chat formats into conversations, and rows with text into plain texts.

`FORMATS` says which columns each format needs and which small function converts it; the format is told from
the columns of the first row. Converters note what is wrong and go on, so that one pass shows every problem.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from llmpipe.data import Cells, Message, Problems, Row, decode, disorder, kind, said, tables, turn_message, user_words
from llmpipe.data.tables import Format, Table
from llmpipe.errors import DataError, Problem, did_you_mean

__all__ = ["FORMATS", "Conversation", "Format", "Message", "conversations", "detect", "texts"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one row teaches: messages, and the tools they may call as JSON; or else a plain `text`."""

    messages: list[Message]
    tools: str | None = None
    text: str | None = None

    @property
    def asked(self) -> str:
        """What decides on which side of a split it falls."""
        return self.text or user_words(self.messages)


def detect(value: Mapping[str, object], *, where: str) -> str:
    """Return the name of the format of a first row; of several, the one that needs most of its columns.

    Raises:
        DataError: if none fits, or the row is a preference, which would be misread.
    """
    return tables.detect(value, CONVERSATIONS, where=where)


def conversations(
    rows: Iterable[Row],
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    problems: Problems | None = None,
) -> Iterator[tuple[Row, Conversation]]:
    """Yield each good row with its conversation, then raise one DataError with the problems of all rows.

    `columns` gives the user's name for a column of ours. The format is told from the first row unless it is
    given; a first row that fits none is raised at once, for nothing after it could be read either.
    """
    yield from tables.converted(rows, CONVERSATIONS, columns=columns, format=format, problems=problems)


def texts(rows: Iterable[Row], *, column: str | None = None, problems: Problems | None = None) -> Iterator[str]:
    """Yield the texts of rows for pretraining; see `documents`."""
    for _, text in documents(rows, column=column, problems=problems):
        yield text


def documents(
    rows: Iterable[Row], *, column: str | None = None, problems: Problems | None = None
) -> Iterator[tuple[Row, str]]:
    """Yield each row with its text, without the empty ones, then raise the problems of all rows.

    The column is the one given, else `text`, else `content`, else the only one with text in the first row.
    """
    problems, kept = problems or Problems(), 0
    for row in problems.watch(rows):
        try:
            column = column or _text_column(row)
        except DataError as error:
            problems.unfit(row, error)
            continue
        text = row.value.get(column)
        if column not in row.value:
            problems.reject(row, [f"the column {column!r} is missing{did_you_mean(column, list(row.value))}"])
        elif not isinstance(text, str):
            problems.reject(row, [f"{column} is {kind(text)}, not text"])
        elif text.strip():
            kept += 1
            yield row, text
    problems.raise_any()
    if not kept:
        raise DataError(f"there is no text: {column} is empty in all rows" if column else "there are no rows")


def _not_conversations(value: Mapping[str, object]) -> str | None:
    """Name data of another kind that the columns of a conversation would let in."""
    what = "preference pairs" if {"chosen", "rejected"} <= set(value) else ""
    # Only true or false beside turns: another label says nothing about how good the answer is.
    if isinstance(value.get("label"), bool) and not {"messages", "conversations", "completion"}.isdisjoint(value):
        what = "single answers, each labelled good or bad (KTO data)"
    return f"these are {what}; sft learns from conversations: {', '.join(FORMATS)}" if what else None


def _text_column(row: Row) -> str:
    strings = [name for name, cell in row.value.items() if isinstance(cell, str)]
    usual = [name for name in ("text", "content") if name in row.value]
    if usual or len(strings) == 1:
        return (usual or strings)[0]
    what = f"cannot tell which column holds the text: {', '.join(row.value)}"
    raise DataError(Problem(f"{what}; say `columns: {{text: YOURS}}`", row.where))


def turns(cells: Cells, column: str) -> list[Message]:
    """Return the turns of a column that lists them; what is wrong is noted in the cells."""
    listed, name = cells.value[column], cells.name(column)
    if isinstance(listed, list):
        return [turn_message(turn, f"{name} turn {number}", cells.wrong) for number, turn in enumerate(listed, 1)]
    cells.wrong.append(f"{name} is {kind(listed)}, not a list of turns")
    return []


def tool_list(cells: Cells) -> str | None:
    """Return the tools column as JSON, None if there are none."""
    tools = cells.value.get("tools")
    listing = json.dumps(tools, ensure_ascii=False) if isinstance(tools, (list, dict)) else ""
    listing = listing or cells.text("tools", needed=False)
    try:
        return listing if listing.strip() and decode(listing) else None
    except (ValueError, RecursionError):
        cells.wrong.append(f"{cells.name('tools')} is not JSON")
        return None


def with_system(cells: Cells, messages: list[Message]) -> list[Message]:
    """Put the system column before the turns, and leave out turns that say nothing."""
    system = cells.text("system", needed=False)
    spoken = [message for message in messages if message["content"].strip() or message["role"] == "tool"]
    if system.strip():
        if spoken and spoken[0]["role"] == "system":
            cells.wrong.append(f"there is a system prompt in turn 1 and in {cells.name('system')}; keep one")
        spoken.insert(0, said("system", system))
    return spoken


def question_turns(cells: Cells, asks: tuple[str, ...]) -> list[Message]:
    """Join the columns of a question into a user turn, the first of them needed; before it, the rounds of history."""
    rounds = cells.value.get("history") or []
    if not isinstance(rounds, list) or not all(map(_is_round, rounds)):
        cells.wrong.append(f"{cells.name('history')} is not a list of pairs of texts, question and answer")
        rounds = []
    earlier = [said(role, text) for pair in rounds for role, text in zip(("user", "assistant"), pair, strict=True)]
    parts = [cells.text(column, needed=column == asks[0]) for column in asks]
    return [*earlier, said("user", "\n\n".join(part for part in parts if part.strip()))]


def _chat(cells: Cells, messages: list[Message]) -> Conversation:
    """Add the system and the tools column to the turns, and check the whole."""
    tools = tool_list(cells)
    if not cells.wrong:  # order can only be judged once every role is known
        cells.wrong.extend(disorder(messages))
    return Conversation(with_system(cells, messages), tools)


def _question(cells: Cells, *, asks: tuple[str, ...], answer: str) -> Conversation:
    return _chat(cells, [*question_turns(cells, asks), said("assistant", cells.text(answer))])


def _is_round(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) and text.strip() for text in pair)


def _listed(cells: Cells, *, column: str) -> Conversation:
    return _chat(cells, turns(cells, column))


def _prompt_completion(cells: Cells) -> Conversation:
    """Take loss on the completion only, even where the prompt has answers in it."""
    prompt, completion = (
        turns(cells, column) if isinstance(cells.value[column], list) else [said(role, cells.text(column))]
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
FORMATS: dict[str, Format[Conversation]] = {
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

CONVERSATIONS = Table(FORMATS, _not_conversations, "name the `format` to learn from the rows all the same")
