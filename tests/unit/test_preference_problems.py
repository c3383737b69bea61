"""Preferences: what is refused, where it stands, and in which words."""

from __future__ import annotations

import pytest

from llmpipe.data.formats import conversations
from llmpipe.data.preferences import preferences
from llmpipe.data.prompts import prompts
from llmpipe.errors import DataError, UsageError
from tests.unit.judged import ASK, BAD, GOOD, HUMAN, PLAIN, SYSTEM, Cell, asked, problems, read, rows

MALFORMED: list[tuple[Cell, list[str]]] = [
    (
        PLAIN | {"chosen": "", "rejected": None},
        ["chosen is empty", "rejected is null, not a text, a turn or a list of turns"],
    ),
    (PLAIN | {"prompt": " "}, ["prompt is empty"]),
    (PLAIN | {"prompt": 3}, ["prompt is a number, not text"]),
    (PLAIN | {"prompt": []}, ["prompt has no turns"]),
    (PLAIN | {"margin": "2", "criterion": 1}, ["criterion is a number, not text", "margin is text, not a number"]),
    (PLAIN | {"margin": float("nan")}, ["margin is nan, not a number"]),
    (PLAIN | {"tools": "[{"}, ["tools is not JSON"]),
    (PLAIN | {"prompt": [ASK, GOOD]}, ["prompt ends with assistant; the last turn must be the user's"]),
    (PLAIN | {"prompt": [ASK, ASK]}, ["prompt turn 2 is user, but after user comes assistant"]),
    (PLAIN | {"prompt": [SYSTEM, ASK], "system": "t"}, ["there is a system prompt in turn 1 and in system; keep one"]),
    (
        PLAIN | {"chosen": {"role": "assistent", "content": "a"}},
        ["chosen has the unknown role 'assistent', did you mean assistant?"],
    ),
    (PLAIN | {"chosen": []}, ["chosen does not end with an answer"]),
    (PLAIN | {"chosen": [GOOD, ASK]}, ["chosen does not end with an answer"]),
    (PLAIN | {"rejected": [BAD, BAD]}, ["rejected turn 2 is assistant, but after assistant comes user or tool"]),
    (PLAIN | {"chosen": [ASK, GOOD]}, ["rejected turn 1 is assistant, but at the start comes system or user"]),
    (
        PLAIN | {"chosen": [ASK, GOOD], "rejected": [{"role": "user", "content": "r"}, BAD]},
        ["chosen and rejected do not begin with the same question"],
    ),
    (PLAIN | {"prompt": "else", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, ["chosen does not begin with prompt"]),
    ({"messages": "q", "chosen": "a", "rejected": "b"}, ["messages is text, not a list of turns"]),
    (
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "b"},
        ["rejected does not begin with Human:, but chosen does"],
    ),
    (
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant:\n\nHuman: r\n\nAssistant: b",
        },
        ["rejected turn 2 (Assistant) is empty"],
    ),
    (
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b\n\nHuman: r"},
        ["rejected does not end with an answer"],
    ),
    (
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r\n\nAssistant: b"},
        ["chosen and rejected do not begin with the same question"],
    ),
    ({"prompt": "q", "answers": "a"}, ["answers is text, not a list of answers"]),
    ({"prompt": "q", "answers": ["a"]}, ["answers has 1 answer; a pair needs two"]),
    ({"prompt": "q", "answers": []}, ["answers has 0 answers; a pair needs two"]),
    (
        {"prompt": "q", "answers": ["a", "", 3, {"reply": "b"}]},
        [
            "answers 2 is empty",
            "answers 3 is a number, not text",
            "answers 4 has no text, body, answer or content",
        ],
    ),
    ({"prompt": "q", "answers": ["a", "b"], "scores": [1]}, ["scores: 1 for 2 answers"]),
    ({"prompt": "q", "answers": ["a", "b"], "scores": [1, None]}, ["scores 2 is null, not a number"]),
    ({"prompt": "q", "answers": ["a", "b"], "ranks": 1}, ["ranks is a number, not a list of numbers"]),
    (
        {"prompt": "q", "answers": [{"text": "a", "score": 1}, {"text": "b"}]},
        ["the score of answers 2 is null, not a number"],
    ),
    (
        {"prompt": "q", "answers": ["a", "b"], "scores": [1, 2], "ranks": [2, 1]},
        ["there are scores and ranks; keep one"],
    ),
    (
        {"prompt": "q", "answers": ["a", "b"], "ratings": [1, 2]},
        ["ratings is a list, not an object with a list of numbers for each criterion"],
    ),
    (
        {"prompt": "q", "answers": ["a", "b"], "ratings": {"safety": [1, True]}},
        ["ratings safety 2 is true or false, not a number"],
    ),
    (
        {"prompt": "q", "answers": ["a", "b", "a"], "scores": [1, 3, 2]},
        ["answers 1 and 3 are the same, but one is said to be better"],
    ),
]


@pytest.mark.parametrize(("value", "messages"), MALFORMED)
def test_malformed(value, messages) -> None:
    assert problems(value) == messages


def test_every_problem_with_its_place_and_the_good_rows_between() -> None:
    found = []
    with pytest.raises(DataError) as caught:
        for row, _ in preferences(rows(PLAIN, PLAIN | {"chosen": 3}, PLAIN, {"prompt": "q", "chosen": "a"})):
            found.append(row.where)
    assert found == ["f.jsonl:1", "f.jsonl:3"]
    assert [str(problem) for problem in caught.value.problems] == [
        "f.jsonl:2: chosen is a number, not a text, a turn or a list of turns",
        "f.jsonl:4: the column 'rejected' is missing",
    ]


def test_ties_alone_teach_nothing() -> None:
    tied: Cell = {"prompt": "q", "answers": ["a", "b"], "scores": [1, 1]}
    assert problems(tied) == ["no row gives a pair: all answers to a prompt are equally good"]
    assert len(read(tied, {"prompt": "q", "answers": ["a", "b"], "scores": [1, 2]})) == 1


@pytest.mark.parametrize("value", [{"messages": [ASK, GOOD]}, {"prompt": "q", "completion": "a"}])
def test_answers_labelled_one_by_one_are_no_pairs(value) -> None:
    assert problems(value | {"label": True}) == [
        "these are single answers, each with a label (KTO data); pairs are needed: a chosen and a rejected answer to "
        "the same prompt"
    ]
    assert asked(value | {"label": True})[0][0] == "user: q"


def test_no_format_fits() -> None:
    [message] = problems({"prompt": "q", "choosen": "a", "rejected": "b"})
    assert message.splitlines() == [
        "no format fits the columns prompt, choosen, rejected; one of these is needed:",
        "  prompt-pairs: prompt, chosen, rejected (is choosen chosen?)",
        "  instruction-pairs: instruction, chosen, rejected (is choosen chosen?)",
        "  question-pairs: question, chosen, rejected (is choosen chosen?)",
        "  sharegpt-pairs: conversations, chosen, rejected (is choosen chosen?)",
        "  messages-pairs: messages, chosen, rejected (is choosen chosen?)",
        "  pairs: chosen, rejected (is choosen chosen?)",
        "  question-responses: question, response_j, response_k",
        "  prompt-answers: prompt, answers",
        "  question-answers: question, answers",
    ]


def test_no_rows_and_no_such_format() -> None:
    assert problems() == problems(reader=prompts) == ["there are no rows to learn from"]
    with pytest.raises(UsageError, match="there is no format 'paris', did you mean pairs"):
        read(format="paris")


SFT = "sft learns from conversations: alpaca, dolly, question-answer, prompt-completion, sharegpt, messages, text"


@pytest.mark.parametrize(
    ("value", "what"),
    [
        *(
            (value, "preference pairs")
            for value in ({"messages": [ASK, GOOD]}, {"conversations": [HUMAN]}, {"text": "t"})
        ),
        ({"messages": [ASK, GOOD], "label": False}, "single answers, each labelled good or bad (KTO data)"),
        ({"prompt": "q", "completion": "a", "label": True}, "single answers, each labelled good or bad (KTO data)"),
    ],
)
def test_conversations_refuse_what_is_judged(value, what) -> None:
    judged = value if "label" in value else value | {"chosen": "a", "rejected": "b"}
    assert problems(judged, reader=conversations) == [f"these are {what}; {SFT}"]


def test_conversations_take_what_is_meant() -> None:
    judged: Cell = {"messages": [ASK, GOOD], "chosen": "a", "rejected": "b"}
    assert len(list(conversations(rows(judged), format="messages"))) == 1
    assert len(list(conversations(rows(PLAIN), columns={"completion": "chosen"}))) == 1
    for labelled in ({"text": "t", "label": True}, {"messages": [ASK, GOOD], "label": "news"}):
        assert len(list(conversations(rows(labelled)))) == 1
