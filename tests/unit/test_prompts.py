"""Prompts: read from rows of every kind, each once."""

from __future__ import annotations

import pytest

from llmpipe.data.preferences import PREFERENCES
from llmpipe.data.prompts import PROMPTS, prompts
from tests.unit.judged import ASK, BAD, GOOD, GPT, HUMAN, PLAIN, SYSTEM, Cell, asked, problems

PROMPTED: list[tuple[Cell, str, str | None]] = [
    ({"prompt": "q"}, "user: q", "q"),
    ({"prompt": "q", "system": "s"}, "system: s | user: q", "s\n\nq"),
    ({"prompt": [SYSTEM, ASK]}, "system: s | user: q", None),
    ({"question": "q"}, "user: q", "q"),
    ({"text": " once "}, "user:  once ", " once "),
    ({"question": "q", "answer": "a"}, "user: q", "q"),
    ({"instruction": "q", "input": "i", "output": "a"}, "user: q\n\ni", "q\n\ni"),
    (
        {"instruction": "q", "output": "a", "history": [["q0", "a0"]]},
        "user: q0 | assistant: a0 | user: q",
        None,
    ),
    ({"prompt": "q", "completion": "a"}, "user: q", "q"),
    ({"prompt": [ASK], "completion": [GOOD, ASK, BAD]}, "user: q | assistant: a | user: q", None),
    ({"messages": [ASK, GOOD, ASK, BAD]}, "user: q | assistant: a | user: q", None),
    ({"messages": [ASK]}, "user: q", None),
    (
        {"conversations": [HUMAN, {"from": "function_call", "value": "{}"}, {"from": "observation", "value": ""}, GPT]},
        "user: q",
        None,
    ),
    ({"prompt": "q", "answers": ["a", "b", "c"]}, "user: q", "q"),
]


@pytest.mark.parametrize(("value", "messages", "text"), PROMPTED)
def test_prompts(value, messages, text) -> None:
    assert asked(value) == [(messages, text)]


def test_a_prompt_is_given_once() -> None:
    assert [text for _, text in asked(PLAIN, PLAIN | {"chosen": "c"}, PLAIN | {"prompt": "r"})] == ["q", "r"]
    systems = asked({"prompt": "q"}, {"prompt": "q", "system": "s"}, {"prompt": [ASK]})
    assert len(systems) == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"messages": [SYSTEM]}, "messages has no turn of the user"),
        ({"messages": [ASK, ASK]}, "messages turn 2 is user, but after user comes assistant"),
        ({"prompt": [ASK, GOOD]}, "prompt ends with assistant; the last turn must be the user's"),
        ({"text": ""}, "text is empty"),
    ],
)
def test_malformed_prompts(value, message) -> None:
    assert problems(value, reader=prompts) == [message]


def test_the_formats_have_names_of_their_own() -> None:
    assert not set(PREFERENCES) & {"prompt", "question", "alpaca", "sharegpt", "messages", "text"}
    assert set(PREFERENCES) < set(PROMPTS)
    assert all(form.about for form in PROMPTS.values())
