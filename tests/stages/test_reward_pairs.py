"""How answers are written for a reward model, and how a reward model says so when it is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from llmpipe.data import Row, said
from llmpipe.data.preferences import Preference, Prompt
from llmpipe.errors import StageError
from llmpipe.settings import PathSource
from llmpipe.training import models, pairs, reward_model
from llmpipe.training.ppo import parts
from tests.stages.preferred import preference, reward_of
from tests.stages.tiny import context_for


def test_an_answer_begins_with_the_prompt_that_a_policy_is_given(tokenizer) -> None:
    one = preference("Yes.", "No, never.")
    (pair,) = pairs.encode([one], tokenizer, end=2, chat=True, heads=["reward"])
    prompt = parts.encoded(Prompt(one.prompt), tokenizer, chat=True).ids
    assert pair.chosen[: pair.prompt] == pair.rejected[: pair.prompt] == prompt
    assert tokenizer.decode(pair.chosen[pair.prompt :]) == "Yes.<|end|>"
    assert pair.chosen[-1] == pair.rejected[-1] == 2
    assert pair.joined


def test_plain_pairs_follow_their_prompts(tokenizer) -> None:
    one = preference("", "", text=("Once upon", " a time", " in hell"))
    (pair,) = pairs.encode([one], tokenizer, end=2, chat=False, heads=["reward"])
    asked = Prompt(one.prompt, "Once upon")
    assert pair.chosen[: pair.prompt] == parts.encoded(asked, tokenizer, chat=False).ids
    assert tokenizer.decode(pair.rejected) == "<|bos|>Once upon in hell<|end|>"


def test_a_token_over_the_cut_is_cut(tokenizer) -> None:
    """`upon` is one token of this vocabulary, so a prompt that ends within it leaves it in two."""
    whole = tokenizer("the ", add_special_tokens=False)["input_ids"]
    one = preference("", "", text=("th", "e ", "at "))
    (pair,) = pairs.encode([one], tokenizer, end=2, chat=False, heads=["reward"])
    apart = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("th", "e ")]
    assert whole != apart[0] + apart[1]
    assert pair.chosen == [tokenizer.bos_token_id, *apart[0], *apart[1], 2]
    assert not pair.joined


def test_the_template_may_be_silent_about_the_end(tokenizer) -> None:
    silent = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    silent.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    end = reward_model.end_token_of(silent, chat=True)
    (pair,) = pairs.encode([preference("Yes.", "No.")], silent, end=end, chat=True, heads=["reward"])
    assert silent.decode(pair.chosen) == "Say something.\nYes.<|end|>"


def test_a_prompt_may_be_missing(tokenizer) -> None:
    one = Preference([], [said("assistant", "Yes.")], [said("assistant", "No.")])
    (pair,) = pairs.encode([one], tokenizer, end=2, chat=True, heads=["reward"])
    assert pair.prompt == 0
    assert pair.chosen[-1] == 2


def test_margins_of_several_criteria_are_added_up() -> None:
    def row(criterion: str, chosen: str, rejected: str, margin: float | None, text: bool = False) -> Any:
        words = ("Q", chosen, rejected) if text else None
        return Row("x", {}), preference(chosen, rejected, criterion=criterion, margin=margin, text=words)

    found = [row("kind", "A", "B", 2, True), row("short", "B", "A", 3)]
    found += [row("kind", "C", "D", None), row("short", "D", "C", 1)]
    kept, ties = pairs.summed(found, {"kind": 1.0, "short": 1.0})
    assert ties == 1
    (_, one) = kept[0]
    assert (one.chosen[0]["content"], one.rejected[0]["content"], one.margin, one.criterion) == ("B", "A", 1.0, None)
    assert one.text == ("Q", "B", "A")
    kept, ties = pairs.summed(found, {"kind": 2.0, "short": 1.0})
    assert ([one.chosen[0]["content"] for _, one in kept], ties) == (["A", "C"], 0)


def test_a_model_without_a_format_gets_it_from_its_tokenizer(make_model, tokenizer, tmp_path) -> None:
    folder = tmp_path / "r"
    reward_model.save(reward_of(make_model, tokenizer), folder)
    (folder / reward_model.FORMAT_FILE).unlink()
    ctx = context_for(tmp_path)
    loaded = reward_model.load(PathSource(path=str(folder), format=None), ctx)
    assert loaded.format.chat_template == tokenizer.chat_template
    assert loaded.format.end_token_id == tokenizer.eos_token_id
    read = "it is taken to read its tokenizer's chat template, and <|end|> (id 2) at the end of an answer"
    assert ctx.events[-1]["text"] == f"{folder} has no reward.json: {read}"


def test_a_language_model_is_no_reward_model(make_model, tokenizer, tmp_path) -> None:
    folder = tmp_path / "m"
    models.save(make_model(), tokenizer, folder)
    with pytest.raises(StageError) as caught:
        reward_model.load(PathSource(path=str(folder), format=None), context_for(tmp_path))
    assert str(caught.value) == f"{folder}: has no weights of a head that scores answers"


def test_several_scores_need_weights(make_model, tokenizer, tmp_path) -> None:
    folder = tmp_path / "r"
    reward_model.save(reward_of(make_model, tokenizer, ("kind", "short")), folder)
    (folder / reward_model.FORMAT_FILE).unlink()
    with pytest.raises(StageError) as caught:
        reward_model.load(PathSource(path=str(folder), format=None), context_for(tmp_path))
    assert str(caught.value) == f"{folder}: gives 2 numbers, and has no reward.json that says what they weigh"


def test_vocabularies_are_told_apart(tokenizer) -> None:
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert reward_model.vocabulary_of(other) == reward_model.vocabulary_of(tokenizer)
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, extra_special_tokens=["<|new|>"])
    assert reward_model.vocabulary_of(other) != reward_model.vocabulary_of(tokenizer)


def test_held_out_pairs_are_measured_up_to_so_many_tokens(tokenizer) -> None:
    found = pairs.encode([preference("Yes.", "No.")] * 5, tokenizer, end=2, chat=True, heads=["reward"])
    each = len(found[0].chosen) + len(found[0].rejected)
    assert [len(pairs.measurable(found, max_tokens=most)) for most in (1, 3 * each, 9 * each)] == [1, 3, 5]
    assert pairs.measurable([], max_tokens=1) == []
