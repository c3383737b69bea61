"""Every problem of GSM8K brings its own answer to the reward, and is right by it alone."""

from __future__ import annotations

import pytest

from llmpipe.data.prompts import prompts
from llmpipe.data.rows import read_rows
from tests.real.shared import real
from tests.unit.test_gsm8k import gsm8k


@pytest.mark.parametrize(("name", "count"), [("sft/gsm8k_train.jsonl", 7473), ("eval/gsm8k_test.jsonl", 1319)])
def test_every_answer_is_right_by_its_own_reference(name: str, count: int) -> None:
    found = [prompt for _, prompt in prompts(read_rows([real(*name.split("/"))]))]
    references = [prompt.reference for prompt in found]
    asked = [prompt.messages[-1]["content"] for prompt in found]
    assert len(found) == count
    assert gsm8k.exact_match(asked, references, references) == [1.0] * count
    assert gsm8k.gives_a_result(asked, references) == [1.0] * count
    others = [*references[1:], references[0]]
    assert 0 < sum(gsm8k.exact_match(asked, others, references)) < count / 20
