"""What one pass over a bad recipe says, word for word, and what `--set` means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmpipe import recipe as recipes
from llmpipe import recipe_edit, yaml_tree
from llmpipe.errors import RecipeError, UsageError
from llmpipe.recipe import Recipe
from llmpipe.recipe_edit import FromFlags

GOOD = """\
name: x
stages:
  tok:
    kind: tokenizer
    data: {builtin: storyworld}
  base:
    kind: pretrain  # a comment
    data: {builtin: storyworld}
    model: {size: 1M}
    trainer:
  scores:
    kind: eval
    models: [base]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(text: str, *overrides: str) -> Recipe:
    Path("r.yaml").write_text(text, encoding="utf-8")
    return recipes.load(Path("r.yaml"), overrides=overrides)


def refused(text: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return caught.value


def test_everything_wrong_is_said_in_one_pass() -> None:
    """Wrong keys hide neither the other keys of their stage, nor edges, nor files, nor `--set`."""
    failure = refused(
        """\
name: X y
seed: -1
stages:
  tok:
    kind: tokenizer
    data: 5
    vocab_size: 10
  base:
    kind: pretrain
    data: {path: "no*.txt"}
    keep: first
    model: {size: 10X}
    dropout: 2
    precision: fp8
    early_stopping: "3"
    held_out: {shar: 1}
    trainer: {learning_rate: '2e-5', output_dir: x, lerning_rate: 1}
  chat:
    kind: sft
    model: {builtin: storyworld}
    data: [{builtin: storyworld, weight: .inf}, {pth: x}, bas]
    packing: maybe
    trainer: [1]
  scores:
    kind: eval
    models: [chat, tok]
    suites: [perplexty]
""",
        "scores.stories=few",
        "bas.dropout=1",
    )
    assert str(failure).splitlines() == [
        "--set bas.dropout=1: no stage is called 'bas', did you mean base?",
        "--set scores.stories=few: stages.scores.stories: must be a whole number, not 'few'",
        "r.yaml:1:7: name: must be a name of lower-case letters, digits, - and _, beginning with a letter, not 'X y'",
        "r.yaml:2:7: seed: must be greater than or equal to 0, not -1",
        "r.yaml:6:11: stages.tok.data: say where it comes from: "
        "{stage: NAME}, {path: FILE}, {hub: ID}, or just a stage's name, not 5",
        "r.yaml:7:17: stages.tok.vocab_size: must be greater than or equal to 16, not 10",
        "r.yaml:10:18: stages.base.data.path: no file matches this pattern",
        "r.yaml:11:11: stages.base.keep: must be 'best' or 'last', not 'first'",
        "r.yaml:12:19: stages.base.model.size: write a count such as 512, 64k, 10M or 1.5B, not '10X'",
        "r.yaml:13:14: stages.base.dropout: must be less than 1, not 2",
        "r.yaml:14:16: stages.base.precision: must be 'auto', 'fp32', 'bf16' or 'fp16', not 'fp8'",
        "r.yaml:15:21: stages.base.early_stopping: must be a whole number, not '3'",
        "r.yaml:16:16: stages.base.held_out.shar: unknown key, did you mean share?",
        "r.yaml:17:30: stages.base.trainer.learning_rate: "
        "must be a number (float), not the text '2e-5'; write 2e-5 without quotes",
        "r.yaml:17:38: stages.base.trainer.output_dir: "
        "is reserved: the run directory decides where a stage writes; use --run",
        "r.yaml:17:53: stages.base.trainer.lerning_rate: "
        "not an option of TrainingArguments, did you mean learning_rate?",
        "r.yaml:20:12: stages.chat.model: `builtin:` does not fit here; it may be stage, path, hub or gguf",
        "r.yaml:21:42: stages.chat.data.0.weight: must be a finite number, not Infinity",
        "r.yaml:21:49: stages.chat.data.1: say where it comes from: "
        "{stage: NAME}, {path: FILE}, {hub: ID}, or just a stage's name",
        "r.yaml:22:14: stages.chat.packing: must be true or false, not 'maybe'",
        "r.yaml:23:14: stages.chat.trainer: must be a mapping, not a list",
        "r.yaml:26:20: stages.scores.models.1: stage 'tok' makes a tokenizer, "
        "a causal-lm, masked-lm, seq2seq-lm or adapter is needed; 'chat' (line 18) is one",
        "r.yaml:27:14: stages.scores.suites.0: must be 'perplexity', 'samples' or 'storyworld', not 'perplexty'",
    ]
    assert failure.hint == "llmpipe options pretrain share"
    assert failure.code == 2


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("stages:\n", "r.yaml:2:1: stages: must be a mapping, not empty"),
        ("stages: {}\n", "r.yaml:2:9: stages: is empty; write at least one"),
        ("stages: [a]\n", "r.yaml:2:9: stages: must be a mapping, not a list"),
        ("", "r.yaml: stages: is missing"),
        ("stages: {a: 5}\n", "r.yaml:2:13: stages.a: a stage is a mapping, such as {kind: sft, ...}"),
        ("stages: {a: {kind: [x]}}\n", "r.yaml:2:20: stages.a.kind: a list is not a kind of stage"),
    ],
)
def test_shapes_that_are_no_recipe(body: str, wanted: str) -> None:
    (found,) = (line for line in str(refused("name: x\n" + body)).splitlines())
    assert found.startswith(wanted)


def test_a_name_with_dots_is_no_way_into_the_hint() -> None:
    failure = refused("name: x\nstages:\n  a.b: {kind: tokenizer, data: {builtin: storyworld}, vocb_size: 5}\n")
    assert len(failure.problems) == 2
    assert failure.hint is None


# ---- --set ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("base.dropout=1e-1", "dropout", 0.1),
        ("base.context=1k", "context", 1000),
        ("base.keep=last", "keep", "last"),
        ("base.early_stopping=", "early_stopping", None),
        ("base.trainer.max_steps=5", "trainer", {"max_steps": 5}),  # `trainer:` was empty
        ("stages.base.trainer={max_steps: 5}", "trainer", {"max_steps": 5}),
    ],
)
def test_set_reads_a_value_as_the_file_would(override: str, field: str, value: object) -> None:
    recipe = load(GOOD.replace("    trainer:\n", "    trainer: {}\n"), override)
    assert getattr(recipe.stages["base"], field) == value


def test_set_puts_a_list_where_a_scalar_was() -> None:
    recipe = load(GOOD, "base.trainer={}", "scores.prompts=[a, b]", "name=other", "seed=7", "scores.models=base")
    assert (recipe.name, recipe.seed) == ("other", 7)
    settings = recipe.stages["scores"].model_dump()
    assert settings["prompts"] == ["a", "b"]
    assert [model["stage"] for model in settings["models"]] == ["base"]


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("base.trainer", "--set base.trainer: write it as key=value, such as chat.trainer.max_steps=100"),
        ("=5", "--set =5: write it as key=value, such as chat.trainer.max_steps=100"),
        ("base..x=5", "--set base..x=5: write it as key=value, such as chat.trainer.max_steps=100"),
        ("bse.dropout=1", "--set bse.dropout=1: no stage is called 'bse', did you mean base?"),
        ("quux.dropout=1", "--set quux.dropout=1: no stage is called 'quux'; stages are tok, base, scores"),
        ("base=5", "--set base=5: 'base' is a stage; write a key of it: base.KEY=VALUE"),
        ("name.x=5", "--set name.x=5: name holds no keys"),
        (
            "scores.models.0=base",
            "--set scores.models.0=base: stages.scores.models is not a mapping, so 0 cannot be set in it; "
            "set it as a whole",
        ),
        (
            "base.dropout=[1",
            "--set base.dropout=[1: is not YAML: while parsing a flow sequence expected ',' or ']', "
            "but got '<stream end>'",
        ),
        ("seed=a", "--set seed=a: seed: must be a whole number, not 'a'"),
        ("base.droput=0", "--set base.droput=0: stages.base.droput: unknown key, did you mean dropout?"),
        (
            "base.trainer.max_steps=1.5",
            "--set base.trainer.max_steps=1.5: stages.base.trainer.max_steps: must be a whole number (int), not 1.5",
        ),
    ],
)
def test_set_names_what_was_typed(override: str, wanted: str) -> None:
    assert str(refused(GOOD.replace("    trainer:\n", ""), override)) == wanted


def test_the_recipe_as_used_keeps_comments_and_says_what_was_set() -> None:
    Path("t.txt").write_text("text", encoding="utf-8")
    text = GOOD.replace("    trainer:\n", "").replace(
        "data: {builtin: storyworld}\n  base", "data: {path: t.txt}\n  base"
    )
    overrides = ["base.trainer.max_steps=5", "seed=7", "scores.prompts=[a]"]
    recipe = load(text, *overrides)
    used = recipe_edit.text_as_used(recipe, overrides)
    assert "kind: pretrain  # a comment" in used
    Path("elsewhere").mkdir()
    Path("elsewhere/recipe.yaml").write_text(used, encoding="utf-8")
    again = recipes.load(Path("elsewhere/recipe.yaml"))
    assert again.seed == 7
    assert again.stages["base"] == recipe.stages["base"]
    assert again.stages["tok"].model_dump()["data"][0]["path"] == str(Path("t.txt").absolute())


# ---- A stage made from flags ------------------------------------------------------------------


def with_stage(run: str, kind: str, keys: dict[str, Any], *overrides: str) -> str:
    typed = {override: f"--set {override}" for override in overrides}
    return recipe_edit.with_stages(Path(run), [FromFlags("sft", kind, keys, overrides=typed)])


def test_a_stage_from_flags_is_added_and_updated() -> None:
    Path("exp2").mkdir()
    first = with_stage("exp2", "sft", {"model": {"hub": "a/b"}}, "trainer.max_steps=5")
    Path("exp2/recipe.yaml").write_text(first, encoding="utf-8")
    second = with_stage("exp2", "sft", {}, "trainer.learning_rate=2e-5", "packing=false")
    assert yaml_tree.parse(second, shown_as="r").data == {
        "name": "exp2",
        "seed": 42,
        "stages": {
            "sft": {
                "kind": "sft",
                "model": {"hub": "a/b"},
                "trainer": {"max_steps": 5, "learning_rate": 2e-5},
                "packing": False,
            }
        },
    }


@pytest.mark.parametrize(
    ("written", "kind", "overrides", "wanted"),
    [
        ("name: x\n", "sft", [], "run/recipe.yaml:1:1: a recipe is a mapping with `name:` and `stages:`"),
        (
            "stages: {sft: 5}\n",
            "sft",
            [],
            "run/recipe.yaml:1:15: stages.sft: a stage is a mapping, such as {kind: sft, ...}",
        ),
        ("stages: {sft: {kind: eval}}\n", "sft", [], "stage 'sft' of run/recipe.yaml is a eval stage"),
        (
            "stages: {sft: {kind: sft, model: base}}\n",
            "sft",
            ["model.hub=x", "oops"],
            "--set model.hub=x: model is not a mapping, so hub cannot be set in it; set it as a whole\n"
            "--set oops: write it as key=value, such as chat.trainer.max_steps=100",
        ),
    ],
)
def test_a_stage_from_flags_that_does_not_fit(written: str, kind: str, overrides: list[str], wanted: str) -> None:
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(written, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        with_stage("run", kind, {}, *overrides)
    assert str(caught.value) == wanted


@pytest.mark.parametrize(
    ("text", "name"), [("Exp2", "exp2"), ("2nd run!", "nd-run"), ("...", "mine"), ("a" * 80, "a" * 64)]
)
def test_names_made_of_folders(text: str, name: str) -> None:
    assert recipe_edit.name_from(text) == name


def test_a_folder_of_the_same_name_does_not_hide_a_shipped_recipe() -> None:
    Path("quickstart").mkdir()
    assert recipes.find("quickstart").suffix == ".yaml"
    Path("quickstart/recipe.yaml").write_text(GOOD, encoding="utf-8")
    assert recipes.find("quickstart") == Path("quickstart/recipe.yaml")
