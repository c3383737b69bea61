"""Rows of labelled answers, from every format, and what is said of rows that are none."""

from __future__ import annotations

from typing import Any

import pytest

from llmpipe.data import Row, said
from llmpipe.data.labelled import LABELLED, Labelled, labelled
from llmpipe.data.preferences import PREFERENCES
from llmpipe.errors import DataError


def read(*values: dict[str, Any], **how: Any) -> list[Labelled]:
    rows = [Row(f"a.jsonl:{number}", value) for number, value in enumerate(values, 1)]
    return [one for _, one in labelled(rows, **how)]


def refused(*values: dict[str, Any], **how: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read(*values, **how)
    return caught.value


ASKED, ANSWER = [said("user", "Why?")], [said("assistant", "Because.")]
CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"prompt": "Why?", "completion": "Because."}, ("Why?", "Because.")),
        ({"instruction": "Why?", "output": "Because."}, ("Why?", "Because.")),
        ({"question": "Why?", "answer": "Because."}, ("Why?", "Because.")),
        ({"messages": CHAT}, None),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]}, None),
    ],
    ids=lambda value: next(iter(value), None) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("is_good", [True, False])
def test_every_format_with_a_label(row: dict[str, Any], text: Any, is_good: bool) -> None:
    (one,) = read(row | {"label": is_good})
    assert [(turn["role"], turn["content"]) for turn in one.prompt] == [("user", "Why?")]
    assert [(turn["role"], turn["content"]) for turn in one.answer] == [("assistant", "Because.")]
    assert (one.is_good, one.text, one.asked) == (is_good, text, "Why?")


def test_the_last_answer_is_judged() -> None:
    turns = [said("system", "Be brief."), *ASKED, said("assistant", "Call."), said("tool", "42"), *ANSWER]
    (one,) = read({"messages": [*CHAT, *turns[1:]], "system": "Be brief.", "label": True})
    assert [turn["content"] for turn in one.prompt] == ["Be brief.", "Why?", "Because.", "Why?"]
    assert [turn["content"] for turn in one.answer] == ["Call.", "42", "Because."]


def test_a_pair_is_a_good_and_a_bad_answer() -> None:
    good, bad = read({"prompt": "Why?", "chosen": "Because.", "rejected": "No."})
    assert good == Labelled(ASKED, ANSWER, True, ("Why?", "Because."))
    assert bad == Labelled(ASKED, [said("assistant", "No.")], False, ("Why?", "No."))
    assert set(PREFERENCES) < set(LABELLED)


def test_a_column_of_another_name() -> None:
    (one,) = read({"prompt": "Why?", "completion": "Because.", "ok": False}, columns={"label": "ok"})
    assert one.is_good is False


@pytest.mark.parametrize(
    ("label", "what"), [(1, "a number"), ("true", "text"), (None, "null")], ids=["number", "text", "null"]
)
def test_a_label_is_true_or_false(label: Any, what: str) -> None:
    error = refused({"prompt": "Why?", "completion": "Because.", "label": label})
    assert str(error) == f"a.jsonl:1: label is {what}, not true or false"


def test_a_row_without_its_label() -> None:
    row = {"prompt": "Why?", "completion": "Because."}
    assert str(refused(row | {"label": True}, row)).startswith("a.jsonl:2: the column 'label' is missing")


def test_rows_without_labels() -> None:
    error = refused({"messages": CHAT})
    assert str(error) == (
        "a.jsonl:1: these are answers without a label; kto learns from answers labelled true (good) or false, "
        "and from pairs"
    )
    assert error.hint == "name the column that says which are good: columns: {label: YOURS}"


def test_what_is_wrong_with_the_turns_is_said_too() -> None:
    error = refused({"messages": CHAT[:1], "label": 3})
    assert str(error).splitlines() == [
        "a.jsonl:1: there is no assistant turn to learn from",
        "a.jsonl:1: label is a number, not true or false",
    ]
