"""A recipe's mistakes, word for word: where, what, and what to type instead; all of them in one pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmpipe import recipe as recipes
from llmpipe.errors import RecipeError

HEAD = "name: x\nstages:\n"
TOK = "  tok: {kind: tokenizer, data: {builtin: storyworld}}\n"
BASE = "  base: {kind: pretrain, data: {builtin: storyworld}, model: {size: 1M}}\n"


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    """Return what is wrong with a recipe as `line:column: path: message`; an empty list when nothing is."""
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        recipes.load(path, overrides=overrides)
    except RecipeError as error:
        return [str(problem).removeprefix(f"{path}:") for problem in error.problems]
    return []


def test_a_good_recipe_has_none(tmp_path: Path) -> None:
    assert problems(tmp_path, HEAD + TOK + BASE) == []


MISTAKES = {
    "misspelt key": (
        "  tok: {kind: tokenizer, data: {builtin: storyworld}, vocab_sise: 10}\n",
        ["3:55: stages.tok.vocab_sise: unknown key, did you mean vocab_size?"],
    ),
    "misspelt trainer option": (
        TOK + BASE.replace("1M}", "1M}, trainer: {learning_rat: 1e-3}"),
        ["4:84: stages.base.trainer.learning_rat: not an option of TrainingArguments, did you mean learning_rate?"],
    ),
    "trainer option of the wrong type": (
        TOK + BASE.replace("1M}", "1M}, trainer: {max_steps: many}"),
        ["stages.base.trainer.max_steps: must be a whole number (int), not the text 'many'"],
    ),
    "reserved trainer option": (
        TOK + BASE.replace("1M}", "1M}, trainer: {output_dir: out}"),
        ["stages.base.trainer.output_dir: is reserved: the run directory decides where a stage writes; use --run"],
    ),
    "trainer option beside trainer": (
        TOK + BASE.replace("1M}", "1M}, learning_rate: 1e-3"),
        ["stages.base.learning_rate: unknown key; it is one of TrainingArguments, so write it under `trainer:`"],
    ),
    "wrong type": (
        "  tok: {kind: tokenizer, data: {builtin: storyworld}, vocab_size: [1]}\n",
        ["3:67: stages.tok.vocab_size: must be a whole number"],
    ),
    "unknown kind": (
        "  tok: {kind: tokeniser}\n",
        ["3:15: stages.tok.kind: 'tokeniser' is not a kind of stage, did you mean tokenizer?"],
    ),
    "no kind": ("  tok: {data: {builtin: storyworld}}\n", ["3:3: stages.tok: has no `kind:`"]),
    "duplicate key": (
        "  tok: {kind: tokenizer, kind: sft}\n",
        ["3:26: stages.tok.kind: is set twice; first in line 3"],
    ),
    "edge to nowhere": (
        TOK + BASE.replace("1M}", "1M}, tokenizer: tokk"),
        ["stages.base.tokenizer: no stage is called 'tokk', did you mean tok?"],
    ),
    "edge to the wrong thing": (
        TOK + BASE + "  chat: {kind: sft, model: tok, data: {builtin: storyworld}}\n",
        [
            "5:28: stages.chat.model: stage 'tok' makes a tokenizer, a causal-lm, adapter or seq2seq-lm is needed; "
            "'base' (line 4) is one"
        ],
    ),
    "a choice that is not ours": (
        TOK
        + BASE
        + "  b2: {kind: pretrain, data: {builtin: storyworld}, model: {size: 1M}}\n"
        + "  chat: {kind: sft, data: {builtin: storyworld}}\n",
        ["6:3: stages.chat: name the model: base and b2 both fit, such as `model: b2`"],
    ),
    "missing file": (
        "  tok: {kind: tokenizer, data: {path: nowhere.txt}}\n",
        ["3:39: stages.tok.data.path: no such file"],
    ),
    "missing input": (BASE, ["3:3: stages.base: needs `tokenizer:` (tokenizer), and no earlier stage makes one"]),
    "unknown architecture": (
        TOK + BASE.replace("{size: 1M}", "{arch: lama}"),
        ["stages.base.model.arch: transformers has no language model 'lama', did you mean "],
    ),
    "architecture of another objective": (
        TOK + BASE.replace("{size: 1M}", "{arch: bert}, objective: denoising"),
        ["stages.base.model: bert is not for objective: denoising, as t5 and bart are, but for causal or masked"],
    ),
    "whole words of no mask": (
        TOK + BASE.replace("1M}", "1M}, whole_word: true"),
        ["stages.base: whole_word is for objective: masked"],
    ),
    "model of another objective": (
        TOK + BASE + "  b2: {kind: pretrain, objective: masked, data: {builtin: storyworld}, model: base}\n",
        ["stages.b2.model: stage 'base' makes a causal-lm, a masked-lm is needed"],
    ),
    "preferences of an encoder-decoder": (
        TOK
        + BASE.replace("{size: 1M}", "{size: 1M}, objective: denoising")
        + "  chat: {kind: sft, model: base, data: {builtin: storyworld}}\n"
        + "  judge: {kind: reward, model: chat, data: {builtin: storyworld}}\n",
        ["stages.judge.model: stage 'chat' makes a seq2seq-lm, a causal-lm or adapter is needed"],
    ),
    "an encoder-decoder to classify with": (
        TOK + "  mod: {kind: classify, data: {path: r.yaml}, model: {arch: t5}}\n",
        ["stages.mod.model: t5 is an encoder-decoder; bert, modernbert and llama are none"],
    ),
    "a classifier where a language model is needed": (
        TOK
        + BASE
        + "  mod: {kind: classify, data: {path: r.yaml}, model: base}\n"
        + "  scores: {kind: eval, models: [mod], suites: [samples]}\n",
        ["stages.scores.models.0: stage 'mod' makes a classifier, a "],
    ),
    "nothing to classify with": (
        "  mod: {kind: classify, data: {path: r.yaml}}\n",
        ["stages.mod: needs `model:` (masked-lm, causal-lm or adapter), and no earlier stage makes one"],
    ),
    "misspelt configuration": (
        TOK + BASE.replace("{size: 1M}", "{arch: gpt2, config: {n_layr: 2}}"),
        ["stages.base.model.config: n_layr is not an option of GPT2Config, did you mean n_layer?"],
    ),
    "batch said twice": (
        TOK + BASE.replace("1M}", "1M}, batch_tokens: 1k, trainer: {per_device_train_batch_size: 2}"),
        ["stages.base: batch_tokens already sets trainer.per_device_train_batch_size; leave one of them out"],
    ),
    "nothing to measure": (
        "  scores: {kind: eval, models: [{hub: a/b}]}\n",
        ["3:3: stages.scores: perplexity needs text: name some with `data:`, or leave it out of `suites:`"],
    ),
    "two kinds of task in one": (
        "  scores: {kind: eval, models: [{hub: a/b}], tasks: [{text: {path: r.yaml}, lm_eval: arc}]}\n",
        [
            "3:54: stages.scores.tasks.0: name one kind of task, not both text and lm_eval; "
            "kinds are choices, continuation, exact_match, text, lm_eval"
        ],
    ),
    "a task of nothing": (
        "  scores: {kind: eval, models: [{hub: a/b}], tasks: [{limit: 3}, piqa]}\n",
        [
            "3:54: stages.scores.tasks.0: name its kind and its data; kinds are choices, continuation, exact_match, ",
            "3:66: stages.scores.tasks.1: a task is a mapping, such as {choices: {path: FILE}}",
        ],
    ),
    "keys of a task": (
        "  scores: {kind: eval, models: [{hub: a/b}], tasks: [{choices: {path: nowhere}, limt: 3, prompt: '{a', "
        "shots: -1}]}\n",
        [
            "3:71: stages.scores.tasks.0.choices.path: no such file",
            "3:81: stages.scores.tasks.0.limt: unknown key, did you mean limit?",
            "stages.scores.tasks.0.prompt: must have its braces in pairs, as in {query}; a brace itself is ",
            "stages.scores.tasks.0.shots: must be greater than or equal to 0, not -1",
        ],
    ),
    "more than a column in braces": (
        "  scores: {kind: eval, models: [{hub: a/b}], tasks: [{text: {path: r.yaml}}, {choices: {path: r.yaml}, "
        "prompt: '{a.b}'}]}\n",
        ["stages.scores.tasks.1.prompt: must have nothing but the name of a column in its braces, as in {query}"],
    ),
    "shots of nothing": (
        "  scores: {kind: eval, models: [{hub: a/b}], tasks: [{choices: {path: r.yaml}, shots: 3}]}\n",
        ["stages.scores.tasks.0: shots need rows to show: examples: {path: FILE}"],
    ),
    "two tasks of one name": (
        "  scores: {kind: eval, models: [{hub: a/b}], tasks: [{text: {path: r.yaml}}, {choices: {path: r.yaml}}]}\n",
        ["stages.scores: two tasks are called r; give one of them another `name:`"],
    ),
    "no suite and no task": (
        "  scores: {kind: eval, models: [{hub: a/b}], suites: []}\n",
        ["stages.scores: there is nothing to measure: `suites:` is empty, and there are no `tasks:`"],
    ),
    "a stage that a task cannot read": (
        TOK + BASE + "  scores: {kind: eval, models: [base], tasks: [{choices: tok}]}\n",
        ["5:58: stages.scores.tasks.0.choices: stage 'tok' makes a tokenizer, a dataset is needed"],
    ),
    "a style that nobody speaks": (
        "  tok: {kind: tokenizer, data: {builtin: storyworld, style: pirat}}\n",
        ["3:61: stages.tok.data.style: must be 'pirate', not 'pirat'"],
    ),
    "two sources in one": (
        "  tok: {kind: tokenizer, data: {builtin: storyworld, path: x}}\n",
        [
            "3:32: stages.tok.data: name one source, not both path and builtin",
            "3:60: stages.tok.data.path: no such file",
        ],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_said_at_its_place(tmp_path: Path, name: str) -> None:
    body, wanted = MISTAKES[name]
    found = problems(tmp_path, HEAD + body)
    assert len(found) == len(wanted), found
    for text, want in zip(found, wanted, strict=True):
        assert want in text, text


def test_all_in_one_pass_and_in_the_order_of_the_file(tmp_path: Path) -> None:
    body = "".join(
        (
            "  tok: {kind: tokenizer, data: {path: gone.txt}, vocab_sise: 5}\n",
            "  base: {kind: pretrain, data: {builtin: storyworld}, model: {size: 1X}, trainer: {max_step: 5}}\n",
            "  chat: {kind: stf}\n",
        )
    )
    found = problems(tmp_path, HEAD + body)
    assert [line.split(":")[0] for line in found] == sorted(line.split(":")[0] for line in found)
    assert len(found) >= 4
    for part in ("3:39: stages.tok.data.path: no such file", "vocab_sise", "size", "'stf' is not a kind"):
        assert any(part in text for text in found), part


def test_the_line_and_a_caret_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(HEAD + "  tok:\n    kind: tokenizer\n    vocab_sise: 10\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        recipes.load(path)
    shown = [problem.excerpt for problem in caught.value.problems if "vocab_sise" in str(problem)]
    assert shown == [("5 |     vocab_sise: 10", "  |     ^^^^^^^^^^")]
    assert caught.value.code == 2
    assert caught.value.hint == "llmpipe options tokenizer vocab"
