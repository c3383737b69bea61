"""Formats: told from the columns, converted, and every bad row named in one pass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmpipe.data import Problems
from llmpipe.data.formats import FORMATS, Conversation, conversations, detect, texts
from llmpipe.data.rows import Row, read_rows
from llmpipe.errors import DataError, ExitCode, UsageError

Cell = dict[str, object]
ASK, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def rows(*values: Cell) -> Iterator[Row]:
    return (Row(f"f.jsonl:{number}", value) for number, value in enumerate(values, 1))


def short(conversation: Conversation) -> list[str]:
    """Return a conversation's turns as `role: content`, with a star where loss is taken."""
    return [f"{'*' if m['train'] else ''}{m['role']}: {m['content']}" for m in conversation.messages]


def problems(*values: Cell, columns: dict[str, str] | None = None, format: str | None = None) -> list[str]:
    with pytest.raises(DataError) as caught:
        list(conversations(rows(*values), columns=columns, format=format))
    assert caught.value.code == ExitCode.DATA
    return [str(problem) for problem in caught.value.problems]


CONVERTED: list[tuple[str, Cell, list[str]]] = [
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}, ["user: q", "*assistant: a"]),
    ("alpaca", {"instruction": "q", "input": "i", "output": "a"}, ["user: q\n\ni", "*assistant: a"]),
    (
        "alpaca",
        {"instruction": "q", "output": "a", "input": None, "system": "s", "history": [["q0", "a0"]]},
        ["system: s", "user: q0", "*assistant: a0", "user: q", "*assistant: a"],
    ),
    ("dolly", {"instruction": "q", "context": "c", "response": "a"}, ["user: q\n\nc", "*assistant: a"]),
    ("question-answer", {"question": "q", "answer": "a"}, ["user: q", "*assistant: a"]),
    ("prompt-completion", {"prompt": "q", "completion": " a"}, ["user: q", "*assistant:  a"]),
    (
        "prompt-completion",
        {"prompt": [ASK, ANSWER, ASK], "completion": [ANSWER]},
        ["user: q", "assistant: a", "user: q", "*assistant: a"],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": ""},
                {"from": "gpt", "value": "a"},
            ],
            "system": "s",
        },
        ["system: s", "user: q", "*assistant: {}", "tool: ", "*assistant: a"],
    ),
    (
        "messages",
        {"messages": [{"role": "system", "content": ""}, ASK, ANSWER]},
        ["user: q", "*assistant: a"],
    ),
    (
        "messages",
        {"messages": [ASK, ANSWER | {"loss_weight": 0}, ASK, ANSWER | {"loss_weight": 1.0}]},
        ["user: q", "assistant: a", "user: q", "*assistant: a"],
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "User", "content": [{"type": "text", "text": "q"}, {"type": "text", "value": "2"}]},
                ANSWER,
            ]
        },
        ["user: q2", "*assistant: a"],
    ),
]


@pytest.mark.parametrize(("format", "value", "expected"), CONVERTED)
def test_converted(format: str, value: Cell, expected: list[str]) -> None:
    assert detect(value, where="f") == format
    [(row, conversation)] = conversations(rows(value))
    assert short(conversation) == expected
    assert (row.value, conversation.text) == (value, None)
    # What comes out can go in again, `train` included.
    again: Cell = {"messages": json.loads(json.dumps(conversation.messages))}
    assert [short(c) for _, c in conversations(rows(again))] == [expected]


def test_plain_text() -> None:
    [(_, conversation)] = conversations(rows({"text": " once "}))
    assert conversation == Conversation([], text=" once ")


@pytest.mark.parametrize(
    ("tools", "kept"),
    [
        ("", None),
        (None, None),
        ("[]", None),
        ([], None),
        ('[{"n": 1}]', '[{"n": 1}]'),
        ([{"n": "é"}], '[{"n": "é"}]'),
    ],
)
def test_tools(tools: object, kept: str | None) -> None:
    [(_, conversation)] = conversations(rows({"messages": [ASK, ANSWER], "tools": tools}))
    assert conversation.tools == kept


def test_the_format_that_needs_more_columns_is_meant() -> None:
    assert detect({"text": "t", "question": "q", "answer": "a"}, where="f") == "question-answer"


def test_no_format_fits() -> None:
    with pytest.raises(DataError) as caught:
        detect({"instrution": "q", "output": "a"}, where="f.jsonl:1")
    assert str(caught.value).splitlines() == [
        "f.jsonl:1: no format fits the columns instrution, output; one of these is needed:",
        "  alpaca: instruction, output (is instrution instruction?)",
        "  dolly: instruction, response (is instrution instruction?)",
        "  question-answer: question, answer",
        "  prompt-completion: prompt, completion",
        "  sharegpt: conversations",
        "  messages: messages",
        "  text: text",
    ]


def test_columns_are_renamed_and_swapped() -> None:
    value: Cell = {"input": "q", "instruction": "i", "reply": "a", "output": "unused"}
    columns = {"instruction": "input", "input": "instruction", "output": "reply"}
    [(_, conversation)] = conversations(rows(value), columns=columns)
    assert short(conversation) == ["user: q\n\ni", "*assistant: a"]


def test_a_renamed_column_that_is_not_there() -> None:
    columns = {"instruction": "question", "output": "reply"}
    assert problems({"question": "q", "replies": "a"}, columns=columns) == [
        "f.jsonl:1: there is no column 'reply', did you mean replies?"
    ]
    columns = {"system": "sys"}
    good: Cell = {"question": "q", "answer": "a"}
    assert problems(good, columns=columns) == ["no row has the column 'sys', meant as system"]
    assert len(list(conversations(rows(good, good | {"sys": "s"}), columns=columns))) == 2


@pytest.mark.parametrize(
    ("columns", "format", "message"),
    [
        ({"instructoin": "q"}, None, "no format reads a column 'instructoin', did you mean instruction?"),
        ({"output": "q"}, "sharegpt", "no format reads a column 'output'"),
        (None, "shargpt", "there is no format 'shargpt', did you mean sharegpt?"),
        (None, "x", f"there is no format 'x'; known are {', '.join(FORMATS)}"),
    ],
)
def test_bad_choice(columns: dict[str, str] | None, format: str | None, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        list(conversations(rows(), columns=columns, format=format))
    assert str(caught.value) == message


def chat(*turns: object, **more: object) -> Cell:
    return {"messages": list(turns), **more}


KNOWN = (
    "system, developer, user, human, assistant, gpt, chatgpt, bot, model, function_call, tool_call, tool, "
    "observation, function, function_response, tool_response"
)
BAD: list[tuple[Cell, list[str]]] = [
    ({"question": "", "answer": 5}, ["question is empty", "answer is a number, not text"]),
    ({"question": "q", "answer": " \n"}, ["answer is empty"]),
    ({"question": "q", "answer": None}, ["answer is null, not text"]),
    ({"instruction": "q", "output": "a", "input": ["i"]}, ["input is a list, not text"]),
    (
        {"instruction": "q", "output": "a", "history": [["q"]]},
        ["history is not a list of pairs of texts, question and answer"],
    ),
    ({"text": " "}, ["text is empty"]),
    ({"messages": "hi"}, ["messages is text, not a list of turns"]),
    (chat(), ["there is no assistant turn to learn from"]),
    (chat(ASK), ["there is no assistant turn to learn from"]),
    (chat(ASK, ANSWER, ASK), ["the last turn (user) has no answer; remove it or add one"]),
    (chat(ASK, ASK, ANSWER), ["turn 2 is user, but after user comes assistant"]),
    (chat(ANSWER, ASK, ANSWER), ["turn 1 is assistant, but at the start comes system or user"]),
    (chat(ASK, ANSWER, ANSWER), ["turn 3 is assistant, but after assistant comes user or tool"]),
    (
        chat({"role": "system", "content": "s"}, ASK, ANSWER, system="t"),
        ["there is a system prompt in turn 1 and in system; keep one"],
    ),
    (
        chat(ASK, ANSWER | {"loss_weight": 0}),
        ["all assistant turns have loss weight 0, so there is nothing to learn from"],
    ),
    (
        chat(ASK, ANSWER | {"loss_weight": "1"}),
        ["messages turn 2 has text for its loss weight, not a number"],
    ),
    (
        chat({"role": "usr", "content": "q"}, {"content": "a"}, 3),
        [
            "messages turn 1 has the unknown role 'usr', did you mean user?",
            "messages turn 2 has no role",
            "messages turn 3 is a number, not an object with role and content",
        ],
    ),
    (
        chat({"role": 7, "content": "q"}, ANSWER),
        [f"messages turn 1 has the unknown role 7; known are {KNOWN}"],
    ),
    (chat(ASK, {"role": "assistant", "content": ""}), ["messages turn 2 (assistant) is empty"]),
    (chat(ASK, {"role": "assistant", "content": None}), ["messages turn 2 is null, not text"]),
    (
        chat({"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image"}]}, ANSWER),
        ["messages turn 1 part 2 is not a text part"],
    ),
    (
        chat(ASK, ANSWER | {"tool_calls": [{}]}),
        ["messages turn 2 has tool_calls, which are not read; write the call into its content"],
    ),
    (chat(ASK, ANSWER, tools="[{"), ["tools is not JSON"]),
    (chat(ASK, ANSWER, tools=3), ["tools is a number, not text"]),
]


@pytest.mark.parametrize(("value", "messages"), BAD)
def test_bad_row(value: Cell, messages: list[str]) -> None:
    assert problems(value) == [f"f.jsonl:1: {message}" for message in messages]


def test_problems_use_the_names_of_the_user() -> None:
    columns = {"question": "ask", "answer": "reply"}
    assert problems({"ask": "q", "reply": 1}, {"ask": "q", "repyl": "a"}, columns=columns) == [
        "f.jsonl:1: reply is a number, not text",
        "f.jsonl:2: the column 'reply' is missing, did you mean repyl?",
    ]


def test_rows_of_another_format() -> None:
    good: Cell = {"question": "q", "answer": "a"}
    assert problems(good, {"instruction": "q", "output": "a"}) == [
        "f.jsonl:2: the columns 'question', 'answer' are missing; the row looks like alpaca, not question-answer"
    ]


def test_all_problems_of_reading_and_converting_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = '{"question": "q", "answer": "a"}\n'
    Path("a.jsonl").write_text(good + '{"question": "q", "answer": 1}\n{"cut\n' + good, encoding="utf-8")
    Path("b.jsonl").write_text('{"question": "q"}\n' * 4 + good + "[]\n", encoding="utf-8")
    found = []
    with pytest.raises(DataError) as caught:
        paths, noted = [Path("a.jsonl"), Path("b.jsonl"), Path("c.jsonl")], Problems(6)
        for row, _ in conversations(read_rows(paths, problems=noted), problems=noted):
            found.append(row.where)
    assert found == ["a.jsonl:1", "a.jsonl:4", "b.jsonl:5"]
    assert [str(problem) for problem in caught.value.problems] == [
        "a.jsonl:2: answer is a number, not text",
        "a.jsonl:3: the line ends inside a string; was the file cut off?",
        *(f"b.jsonl:{line}: the column 'answer' is missing" for line in range(1, 5)),
        "... and 2 more",
    ]


def test_no_rows() -> None:
    assert problems() == ["there are no rows to learn from"]


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        ({"text": "t", "content": "c"}, None, "t"),
        ({"content": "c", "url": "u"}, None, "c"),
        ({"n": 1, "body": "b"}, None, "b"),
        ({"text": "t", "body": "b"}, "body", "b"),
    ],
)
def test_texts(value: Cell, column: str | None, text: str) -> None:
    assert list(texts(rows(value), column=column)) == [text]


def test_empty_texts_are_skipped() -> None:
    assert list(texts(rows({"text": ""}, {"text": "a"}, {"text": " \n"}))) == ["a"]


@pytest.mark.parametrize(
    ("values", "column", "messages"),
    [
        (
            [{"a": "x", "b": "y"}],
            None,
            ["f.jsonl:1: cannot tell which column holds the text: a, b; say `columns: {text: YOURS}`"],
        ),
        (
            [{"text": 5}, {"text": "a"}, {"txt": "b"}],
            None,
            [
                "f.jsonl:1: text is a number, not text",
                "f.jsonl:3: the column 'text' is missing, did you mean txt?",
            ],
        ),
        ([{"text": ""}], None, ["there is no text: text is empty in all rows"]),
        ([], None, ["there are no rows"]),
        ([{"text": "a"}], "txet", ["f.jsonl:1: the column 'txet' is missing, did you mean text?"]),
    ],
)
def test_bad_texts(values: list[Cell], column: str | None, messages: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        list(texts(rows(*values), column=column))
    assert [str(problem) for problem in caught.value.problems] == messages
