"""Rows and readers for the tests of preferences and prompts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmpipe.data import Message, Row
from llmpipe.data.preferences import Preference, preferences
from llmpipe.data.prompts import prompts
from llmpipe.errors import DataError

Cell = dict[str, object]
ASK, GOOD, BAD = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "assistant", "content": "b"},
)
SYSTEM = {"role": "system", "content": "s"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
PLAIN: Cell = {"prompt": "q", "chosen": "a", "rejected": "b"}


def rows(*values: Cell) -> Iterator[Row]:
    return (Row(f"f.jsonl:{number}", value) for number, value in enumerate(values, 1))


def turns(messages: list[Message]) -> str:
    return " | ".join(f"{message['role']}: {message['content']}" for message in messages)


def read(*values: Cell, **options) -> list[Preference]:
    return [preference for _, preference in preferences(rows(*values), **options)]


def asked(*values: Cell, **options) -> list[tuple[str, str | None]]:
    return [(turns(prompt.messages), prompt.text) for _, prompt in prompts(rows(*values), **options)]


def problems(*values: Cell, reader=preferences, **options) -> list[str]:
    with pytest.raises(DataError) as caught:
        list(reader(rows(*values), **options))
    return [str(problem).removeprefix("f.jsonl:1: ") for problem in caught.value.problems]
