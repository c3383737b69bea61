"""Preferences: every shape they come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpipe.data.prompts import prompts
from tests.unit.judged import ASK, BAD, GOOD, GPT, HUMAN, PLAIN, SYSTEM, Cell, asked, problems, read, rows, turns

PAIRS: list[tuple[str, Cell, str, str, str, tuple[str, str, str] | None]] = [
    (
        "sharegpt-pairs",
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "b"}},
        "user: q",
        "assistant: a",
        "assistant: b",
        None,
    ),
    (
        "messages-pairs",
        {"messages": [ASK, GOOD, ASK], "chosen": GOOD, "rejected": [BAD], "system": "s"},
        "system: s | user: q | assistant: a | user: q",
        "assistant: a",
        "assistant: b",
        None,
    ),
    ("prompt-pairs", PLAIN, "user: q", "assistant: a", "assistant: b", ("q", "a", "b")),
    (
        "prompt-pairs",
        PLAIN | {"system": "s"},
        "system: s | user: q",
        "assistant: a",
        "assistant: b",
        ("s\n\nq", "a", "b"),
    ),
    (
        "prompt-pairs",
        {"prompt": [SYSTEM, ASK], "chosen": [GOOD, ASK, GOOD], "rejected": "b"},
        "system: s | user: q",
        "assistant: a | user: q | assistant: a",
        "assistant: b",
        None,
    ),
    (  # whole conversations, the prompt said again
        "prompt-pairs",
        {"prompt": "q", "messages": [ASK, GOOD], "chosen": [SYSTEM, ASK, GOOD], "rejected": [SYSTEM, ASK, BAD]},
        "system: s | user: q",
        "assistant: a",
        "assistant: b",
        None,
    ),
    (
        "messages-pairs",
        {"messages": [ASK, GOOD], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        "user: q",
        "assistant: a",
        "assistant: b",
        None,
    ),
    (
        "pairs",
        {"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, GOOD, ASK, BAD]},
        "user: q | assistant: a | user: q",
        "assistant: a",
        "assistant: b",
        None,
    ),
    (  # one goes on where the other ends
        "pairs",
        {"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, GOOD]},
        "user: q",
        "assistant: a | user: q | assistant: a",
        "assistant: a",
        None,
    ),
    (
        "instruction-pairs",
        {"instruction": "q", "input": "i", "chosen": "a", "rejected": "b"},
        "user: q\n\ni",
        "assistant: a",
        "assistant: b",
        ("q\n\ni", "a", "b"),
    ),
    (
        "instruction-pairs",
        {"instruction": "q", "history": [["q0", "a0"]], "chosen": "a", "rejected": "b"},
        "user: q0 | assistant: a0 | user: q",
        "assistant: a",
        "assistant: b",
        None,
    ),
    (
        "question-pairs",
        {"question": "q", "chosen": "a", "rejected": "b"},
        "user: q",
        "assistant: a",
        "assistant: b",
        ("q", "a", "b"),
    ),
    (
        "question-responses",
        {"question": "q", "response_j": "a", "response_k": "b", "label": 1},
        "user: q",
        "assistant: a",
        "assistant: b",
        ("q", "a", "b"),
    ),
    (
        "pairs",
        {"chosen": "Once more, happy.", "rejected": "Once more, sad."},
        "",
        "assistant: Once more, happy.",
        "assistant: Once more, sad.",
        ("", "Once more, happy.", "Once more, sad."),
    ),
    (
        "pairs",
        {"chosen": "Human: the word", "rejected": "Human: a word", "system": "s"},
        "system: s",
        "assistant: Human: the word",
        "assistant: Human: a word",
        ("s", "Human: the word", "Human: a word"),
    ),
    (
        "pairs",
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a0\n\nHuman: r\n\nAssistant: same a",
            "rejected": "\n\nHuman: q\n\nAssistant: a0\n\nHuman: r\n\nAssistant: same b",
        },
        "user: q | assistant: a0 | user: r",
        "assistant: same a",
        "assistant: same b",
        ("\n\nHuman: q\n\nAssistant: a0\n\nHuman: r\n\nAssistant:", " same a", " same b"),
    ),
    (  # one side takes two turns; the other says nothing
        "pairs",
        {
            "chosen": "\n\nHuman: q\n\nAssistant:",
            "rejected": "\n\nHuman: q\n\nAssistant: b\n\nAssistant: c",
        },
        "user: q",
        "assistant: ",
        "assistant: b\n\nc",
        ("\n\nHuman: q\n\nAssistant:", "", " b\n\nAssistant: c"),
    ),
    (
        "prompt-pairs",
        {"prompt": "\n\nHuman: q\n\nAssistant: a0\n\nHuman: r\n\nAssistant:", "chosen": " a", "rejected": " b"},
        "user: q | assistant: a0 | user: r",
        "assistant:  a",
        "assistant:  b",
        ("\n\nHuman: q\n\nAssistant: a0\n\nHuman: r\n\nAssistant:", " a", " b"),
    ),
    (
        "prompt-pairs",
        {"prompt": "Human: q\n\nAssistant: a0\n\nHuman: r", "chosen": " a", "rejected": " b"},
        "user: q | assistant: a0 | user: r",
        "assistant:  a",
        "assistant:  b",
        ("Human: q\n\nAssistant: a0\n\nHuman: r\n\nAssistant:", " a", " b"),
    ),
]


@pytest.mark.parametrize(("format", "value", "prompt", "chosen", "rejected", "text"), PAIRS)
@pytest.mark.parametrize("told", [True, False])
def test_pairs(format, value, prompt, chosen, rejected, text, told) -> None:
    [found] = read(value, format=format if told else None)
    assert (turns(found.prompt), turns(found.chosen), turns(found.rejected)) == (prompt, chosen, rejected)
    assert (found.text, found.criterion, found.margin, found.tools) == (text, None, None, None)
    assert asked(value, value, format=format if told else None) == [(prompt, text and text[0])]


def test_criterion_margin_and_tools() -> None:
    more = {"criterion": " safety", "margin": 2, "tools": [{"n": 1}]}
    [found, other] = read(PLAIN | more, PLAIN | {"criterion": None, "margin": None, "tools": ""})
    assert (found.criterion, found.margin, found.tools) == ("safety", 2.0, '[{"n": 1}]')
    assert (other.criterion, other.margin, other.tools) == (None, None, None)
    assert [prompt.tools for _, prompt in prompts(rows(PLAIN | more))] == ['[{"n": 1}]']


def test_columns_are_renamed() -> None:
    columns = {"prompt": "ask", "chosen": "yes", "rejected": "no"}
    assert read({"ask": "q", "yes": "a", "no": "b"}, columns=columns) == read(PLAIN)
    assert problems({"ask": "q", "yes": "a", "no": 3}, columns=columns) == [
        "no is a number, not a text, a turn or a list of turns"
    ]


Ranked = list[tuple[str, str, str | None, float | None]]
RANKED: list[tuple[Cell, Ranked]] = [
    ({"answers": ["a", "b", "c"]}, [("a", "b", None, None), ("a", "c", None, None), ("b", "c", None, None)]),
    ({"answers": ["a", "b", "c"], "scores": [1, 2, 2]}, [("b", "a", None, None), ("c", "a", None, None)]),
    ({"answers": ["a", "b"], "ranks": [2, 1]}, [("b", "a", None, None)]),
    ({"answers": ["a", "b"], "scores": None, "criterion": "style"}, [("a", "b", "style", None)]),
    ({"answers": [{"text": "a", "pm_score": 1}, {"text": "b", "pm_score": 4}]}, [("b", "a", None, None)]),
    ({"answers": [{"body": "a", "score": 7}, {"body": "b", "score": -1}]}, [("a", "b", None, None)]),
    (
        {"answers": ["a", "b"], "ratings": {"helpfulness": [4, 2], "safety": [1, 5], "style": [3, 3], "none": None}},
        [("a", "b", "helpfulness", 2.0), ("b", "a", "safety", 4.0)],
    ),
]


@pytest.mark.parametrize(("value", "expected"), RANKED)
@pytest.mark.parametrize("column", ["prompt", "question"])
def test_rankings(value, expected, column) -> None:
    found = read({column: "q"} | value)
    assert {(turns(p.prompt), p.text and p.text[0]) for p in found} == {("user: q", "q")}
    told = [(p.chosen[0]["content"], p.rejected[0]["content"], p.criterion, p.margin) for p in found]
    assert told == expected
    assert all(p.text == ("q", p.chosen[0]["content"], p.rejected[0]["content"]) for p in found)


@given(scores=st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=8, unique=True))
def test_distinct_scores_give_every_pair_the_higher_one_first(scores: list[float]) -> None:
    answers = {f"answer {number}": score for number, score in enumerate(scores)}
    found = read({"prompt": "q", "answers": list(answers), "scores": scores})
    told = [(p.chosen[0]["content"], p.rejected[0]["content"]) for p in found]
    assert len(set(told)) == len(told) == len(scores) * (len(scores) - 1) // 2
    assert all(answers[better] > answers[worse] for better, worse in told)


def test_equal_answers_are_left_to_the_stage() -> None:
    """Real sets have ties (UltraFeedback); the stage that compares their tokens drops and counts them."""
    found = read(PLAIN | {"rejected": PLAIN["chosen"]}) + read({"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]})
    assert [one.chosen for one in found] == [one.rejected for one in found]
    assert all(one.prompt and one.chosen for one in found)
