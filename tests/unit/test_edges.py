"""Edges between stages: filled in where one fits, refused with the candidates where none or several do, ordered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmpipe import edges, yaml_tree
from llmpipe import recipe as recipes
from llmpipe.errors import RecipeError

DATA = "data: {builtin: storyworld}"
TOK = f"  tok: {{kind: tokenizer, {DATA}}}\n"
BASE = f"  base: {{kind: pretrain, {DATA}, model: {{size: 1M}}}}\n"
CHAT = f"  chat: {{kind: sft, {DATA}}}\n"


def check(*stages: str) -> recipes.Recipe:
    text = "name: x\nstages:\n" + "".join(stages)
    return recipes.check(yaml_tree.parse(text, shown_as="r.yaml"), Path("r.yaml").absolute())


def wrong(*stages: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        check(*stages)
    return [str(problem) for problem in caught.value.problems]


def test_an_omitted_input_is_the_one_that_fits() -> None:
    recipe = check(TOK, BASE, CHAT)
    found = {name: edges.upstream(settings) for name, settings in recipe.stages.items()}
    assert found == {"tok": [], "base": ["tok"], "chat": ["base"]}


def test_only_earlier_stages_fill() -> None:
    assert wrong(BASE, TOK) == [
        "r.yaml:3:3: stages.base: needs `tokenizer:` (tokenizer), and no earlier stage makes one"
    ]


def test_stages_are_sorted_so_that_inputs_come_first_and_stay_in_place_otherwise() -> None:
    late = BASE.replace("size: 1M}", "size: 1M}, tokenizer: tok")
    scores = "  scores: {kind: eval, models: base}\n"
    assert list(check(scores, late, TOK, CHAT).stages) == ["tok", "base", "scores", "chat"]


@pytest.mark.parametrize(("extra", "listed"), [(1, "base and b1 both"), (2, "base, b1 and b2 all")])
def test_several_fit(extra: int, listed: str) -> None:
    more = [BASE.replace("base", f"b{number}", 1) for number in range(1, extra + 1)]
    assert wrong(TOK, BASE, *more, CHAT) == [
        f"r.yaml:{5 + extra}:3: stages.chat: name the model: {listed} fit, such as `model: b{extra}`"
    ]


@pytest.mark.parametrize(
    ("chat", "wanted"),
    [
        ("model: chat", "5:28: stages.chat.model: a stage cannot be its own input"),
        ("model: bse", "5:28: stages.chat.model: no stage is called 'bse', did you mean base?"),
        ("model: quux", "5:28: stages.chat.model: no stage is called 'quux'; stages here: tok, base"),
        (
            "model: tok",
            "5:28: stages.chat.model: stage 'tok' makes a tokenizer, a causal-lm, adapter or seq2seq-lm is needed; "
            "'base' (line 4) is one",
        ),
    ],
)
def test_edges_that_cannot_be(chat: str, wanted: str) -> None:
    assert wrong(TOK, BASE, f"  chat: {{kind: sft, {chat}, {DATA}}}\n") == [f"r.yaml:{wanted}"]


def test_an_item_of_a_list_is_pointed_at_itself() -> None:
    scores = "  scores: {kind: eval, models: [base, bse]}\n"
    assert wrong(TOK, BASE, scores) == [
        "r.yaml:5:39: stages.scores.models.1: no stage is called 'bse', did you mean base?"
    ]


def test_a_cycle_is_spelt_out() -> None:
    ring = [f"  {a}: {{kind: sft, model: {b}, {DATA}}}\n" for a, b in ("ab", "bc", "ca")]
    after = f"  z: {{kind: sft, model: a, {DATA}}}\n"
    wanted = ["r.yaml:4:3: stages.a: these stages wait for each other: a → b → c → a"]
    assert wrong(after, *ring) == wanted


def test_a_stage_that_cannot_be_read_causes_no_second_problem() -> None:
    broken = "  base: {kind: pretran}\n"
    scores = "  scores: {kind: eval, models: [base, chat]}\n"
    assert wrong(TOK, broken, CHAT, scores) == [
        "r.yaml:4:16: stages.base.kind: 'pretran' is not a kind of stage, did you mean pretrain?"
    ]


@pytest.mark.parametrize("is_one", [True, False])
def test_a_folder_says_whether_it_is_an_encoder_decoder(
    is_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("given").mkdir()
    Path("given/config.json").write_text(json.dumps({"is_encoder_decoder": is_one}), encoding="utf-8")
    Path("given/model.safetensors").touch()
    chat = f"  chat: {{kind: sft, model: {{path: given}}, {DATA}}}\n"
    judge = f"  judge: {{kind: reward, model: chat, {DATA}}}\n"
    if not is_one:
        assert list(check(chat, judge).stages) == ["chat", "judge"]
        return
    (problem,) = wrong(chat, judge)
    assert "stage 'chat' makes a seq2seq-lm, a causal-lm" in problem
