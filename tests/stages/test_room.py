"""An answer has the room that its own prompt leaves in the context, whatever is asked beside it."""

from __future__ import annotations

import pytest

from llmpipe.evaluation.generate import answers

SHORT = "Nora"
LONG = "One day Nora went to the forest by the river and found a big red shoe."
OPTIONS = {"chat": False, "max_new_tokens": 12, "temperature": 0.0, "seed": 0}


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_long_prompt_takes_no_room_from_a_short_one(arch, make_model, tokenizer) -> None:
    long = len(tokenizer(LONG)["input_ids"])
    model = make_model(arch, context=long + 3).eval()
    model.generation_config.eos_token_id = 299  # so that answers are cut off by their room alone
    alone = [answers(model, tokenizer, [prompt], **OPTIONS)[0] for prompt in (SHORT, LONG, SHORT)]
    assert answers(model, tokenizer, [SHORT, LONG, SHORT], **OPTIONS) == alone
    assert len(tokenizer(alone[0], add_special_tokens=False)["input_ids"]) > 3


@pytest.mark.parametrize("spare", [0, -1, -5])
def test_a_prompt_that_fills_the_context_has_no_answer(spare, make_model, tokenizer) -> None:
    model = make_model("gpt2", context=len(tokenizer(LONG)["input_ids"]) + spare).eval()
    assert answers(model, tokenizer, [LONG, SHORT], **OPTIONS)[0] == ""
