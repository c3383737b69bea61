"""The real instruction and pretraining files convert whole: each row, its roles, what it is trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from llmpipe.data.formats import conversations, texts
from llmpipe.data.rows import expand, read_rows
from llmpipe.errors import DataError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data are not at {DATA}")

# file -> rows, turns by role, trained turns
FILES = {
    "sft/alpaca_en_demo.json": (999, {"user": 999, "assistant": 999}, 999),
    "sft/identity.json": (91, {"user": 91, "assistant": 91}, 91),
    "sft/glaive_toolcall_en_demo.json": (300, {"user": 746, "assistant": 957, "tool": 211}, 957),
    "sft/v1_sft_demo.jsonl": (500, {"user": 500, "assistant": 500}, 500),
    "sft/gsm8k_train.jsonl": (7473, {"user": 7473, "assistant": 7473}, 7473),
    "sft/dolly_sample.json": (12, {"user": 12, "assistant": 12}, 12),
    "sft/conversation_axolotl.json": (1, {"user": 6, "assistant": 6}, 6),
    "seq2seq/common_gen_Put_together.jsonl": (200, {"user": 200, "assistant": 200}, 200),
    "seq2seq/gigaword_TLDR.jsonl": (200, {"user": 200, "assistant": 200}, 200),
}


@pytest.mark.parametrize("name", FILES)
def test_whole_file_converts(name: str) -> None:
    found = [conversation for _, conversation in conversations(read_rows([DATA / name]))]
    roles = Counter(message["role"] for conversation in found for message in conversation.messages)
    trained = sum(message["train"] for conversation in found for message in conversation.messages)
    assert (len(found), dict(roles), trained) == FILES[name]


def test_glaive_keeps_tools_and_calls() -> None:
    rows = conversations(read_rows([DATA / "sft/glaive_toolcall_en_demo.json"]))
    found = [conversation for _, conversation in rows]
    assert sum(conversation.tools is None for conversation in found) == 109
    first = next(c for c in found if any(m["role"] == "tool" for m in c.messages))
    assert [m["role"] for m in first.messages][:6] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert first.messages[3]["content"].startswith('{"name": "search_recipes"') and first.messages[3]["train"]
    assert first.tools is not None and first.tools.startswith('[{"name": "search_recipes"')


def test_alpaca_input_follows_the_instruction() -> None:
    rows = list(conversations(read_rows([DATA / "sft/alpaca_en_demo.json"])))
    row, conversation = next((r, c) for r, c in rows if r.value["input"])
    assert conversation.messages[0]["content"] == f"{row.value['instruction']}\n\n{row.value['input']}"


@pytest.mark.parametrize(
    ("name", "what"),
    [("dpo_en_demo.json", "preference pairs"), ("kto_en_demo.json", "single answers, each labelled good or bad")],
)
def test_what_is_judged_is_refused_as_conversations(name: str, what: str) -> None:
    with pytest.raises(DataError, match=f"row 1: these are {what}.*; sft learns from conversations"):
        list(conversations(read_rows([DATA / "preference" / name])))


def test_pretraining_texts() -> None:
    assert len(list(texts(read_rows([DATA / "pretrain/c4_demo.jsonl"])))) == 300
    shakespeare = DATA / "pretrain/tinyshakespeare.txt"
    assert list(texts(read_rows([shakespeare]))) == [shakespeare.read_bytes().decode()]
    assert len(list(texts(read_rows(expand("pretrain/**/*.txt", base=DATA))))) == 10
    assert len(list(texts(read_rows(expand("pretrain", base=DATA))))) == 310


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("preference/hh_rlhf_harmless_test.jsonl.gz", 2312),
        ("pii/presidio_synth_first750.json", 750),
        ("safety/davidson_train.csv", 12000),  # has line breaks inside quoted cells
        ("safety/profanity_en.csv", 1598),
    ],
)
def test_other_files_read_whole(name: str, count: int) -> None:
    assert sum(1 for _ in read_rows([DATA / name])) == count
