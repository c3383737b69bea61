"""The real preference files give the pairs they hold, and every file that asks something its prompts."""

from __future__ import annotations

import pytest

from llmpipe.data.preferences import preferences
from llmpipe.data.prompts import prompts
from llmpipe.data.rows import read_rows
from llmpipe.errors import DataError
from tests.real.shared import real

# file -> prompts, the same one counted once; whether they have a plain text
PROMPTS = {
    "preference/dpo_en_demo.json": (295, False),
    "preference/hh_rlhf_harmless_test.jsonl.gz": (2310, True),
    "preference/kto_en_demo.json": (297, False),
    "safety/do_not_answer.jsonl": (938, True),
    "sft/alpaca_en_demo.json": (985, True),
    "sft/dolly_sample.json": (12, True),
    "sft/glaive_toolcall_en_demo.json": (263, False),
    "sft/gsm8k_train.jsonl": (7473, True),
    "sft/v1_sft_demo.jsonl": (498, False),
    "seq2seq/common_gen_Put_together.jsonl": (67, True),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_of_every_kind(name: str) -> None:
    found = [prompt for _, prompt in prompts(read_rows([real(name)]))]
    assert len(found) == PROMPTS[name][0]
    assert all(prompt.messages[-1]["role"] == "user" for prompt in found)
    assert {prompt.text is not None for prompt in found} == {PROMPTS[name][1]}


def test_pairs_of_turns() -> None:
    found = list(preferences(read_rows([real("preference", "dpo_en_demo.json")])))
    assert len(found) == 300
    for row, pair in found:
        assert [turn["value"] for turn in row.value["conversations"]] == [m["content"] for m in pair.prompt]
        assert [m["content"] for m in pair.chosen] == [row.value["chosen"]["value"]]
        assert [m["content"] for m in pair.rejected] == [row.value["rejected"]["value"]]
        assert pair.text is None


def test_dialogues() -> None:
    found = list(preferences(read_rows([real("preference", "hh_rlhf_harmless_test.jsonl.gz")])))
    assert len(found) == 2312
    silent = 0
    for row, pair in found:
        assert pair.text is not None
        prompt, chosen, rejected = pair.text
        assert (prompt + chosen, prompt + rejected) == (row.value["chosen"], row.value["rejected"])
        assert prompt.endswith("\n\nAssistant:")
        assert pair.prompt[0]["role"] == pair.prompt[-1]["role"] == "user"
        assert [len(pair.chosen), len(pair.rejected)] == [1, 1]
        silent += not pair.chosen[0]["content"]
        # A turn that its writer cut in two is one turn.
        assert pair.chosen[0]["content"].split() == chosen.replace("\n\nAssistant:", "").split()
    assert silent == 4


def test_labelled_answers_are_no_pairs() -> None:
    with pytest.raises(DataError) as caught:
        list(preferences(read_rows([real("preference", "kto_en_demo.json")])))
    assert str(caught.value).partition("row 1: ")[2] == (
        "these are single answers, each with a label (KTO data); pairs are needed: a chosen and a rejected answer to "
        "the same prompt"
    )
