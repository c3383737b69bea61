"""Turn rows into prompts, for PPO: from rows with nothing else, from preferences, and from conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from llmpipe.data import Cells, Message, Problems, Row, said, tables
from llmpipe.data.formats import FORMATS, TOLD, Conversation, turns
from llmpipe.data.preferences import PREFERENCES, Preference, Prompt, asked_in, before_answers
from llmpipe.data.tables import Format, Table


def prompts(
    rows: Iterable[Row],
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    problems: Problems | None = None,
) -> Iterator[tuple[Row, Prompt]]:
    """Yield each good row with what is asked in it, a prompt once however many rows ask it; then raise all problems.

    Raises:
        DataError: with the problems of all rows; at once for a first row that fits no format.
    """
    seen: set[tuple[object, ...]] = set()
    for row, found in tables.converted(rows, Table(PROMPTS), columns=columns, format=format, problems=problems):
        for prompt in found:
            content = (prompt.text, prompt.tools, *((turn["role"], turn["content"]) for turn in prompt.messages))
            if content not in seen:
                seen.add(content)
                yield row, prompt


def _of_pairs(cells: Cells, *, convert: Callable[[Cells], list[Preference]]) -> list[Prompt]:
    return [Prompt(p.prompt, p.text[0] if p.text else None, p.tools) for p in convert(cells)]


def _of_conversation(cells: Cells, *, form: Format[Conversation]) -> list[Prompt]:
    """Return what is asked in a conversation, as a text too where the row held texts."""
    found = form.convert(cells)
    if found.text is not None:
        return [Prompt([said("user", found.text)], found.text)]
    plain = all(isinstance(cells.value[column], str) for column in form.needs)
    asked = before_last_answer(found.messages)
    told = plain and not any(message["role"] == "assistant" for message in asked)
    text = "\n\n".join(m["content"] for m in asked) if told else None
    return [Prompt(asked, text, found.tools, _answer(found.messages[len(asked) :]))]


def _answer(after: list[Message]) -> str | None:
    """Return what the row's own answer says, or None where it has none."""
    said_last = [message["content"] for message in after if message["role"] == "assistant"]
    return said_last[-1] if said_last else None


def before_last_answer(messages: list[Message]) -> list[Message]:
    """Return the turns up to the last one of a user, so that calls of tools are part of the answer."""
    asked = [place for place, message in enumerate(messages, 1) if message["role"] == "user"]
    return messages[: asked[-1]] if asked else []


def _of_turns(cells: Cells, *, column: str) -> list[Prompt]:
    """Return the turns up to the user's last one; a row without an answer to it is as good."""
    every = turns(cells, column)
    listed = before_last_answer(every)
    if not listed and not cells.wrong:
        cells.wrong.append(f"{cells.name(column)} has no turn of the user")
    return [replace(before_answers(cells, cells.name(column), listed), reference=_answer(every[len(listed) :]))]


def _only(cells: Cells, *, column: str) -> list[Prompt]:
    return [asked_in(cells, asks=(column,))]


def _format(
    form: Format[Conversation] | Format[list[Preference]], convert: Callable[[Cells], list[Prompt]]
) -> Format[list[Prompt]]:
    return Format(form.needs, form.also, form.about, convert)


PROMPTS: dict[str, Format[list[Prompt]]] = {
    "prompt": Format(("prompt",), TOLD, "a prompt alone, as a text or turns", partial(_only, column="prompt")),
    "question": Format(("question",), TOLD, "a question alone", partial(_only, column="question")),
    **{name: _format(form, partial(_of_pairs, convert=form.convert)) for name, form in PREFERENCES.items()},
    **{name: _format(form, partial(_of_conversation, form=form)) for name, form in FORMATS.items()},
    "sharegpt": _format(FORMATS["sharegpt"], partial(_of_turns, column="conversations")),
    "messages": _format(FORMATS["messages"], partial(_of_turns, column="messages")),
}
"""The formats of prompts by name: alone, of preferences, and of conversations."""
