"""`options` at 80 columns and the JSON Schema: what they say is what the recipe reader takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from llmpipe import recipe as recipes
from llmpipe import stages, vocabulary
from llmpipe.errors import UsageError
from llmpipe.settings import TRAINER_RESERVED

SHIPPED = recipes.shipped_recipes()
SCHEMA = vocabulary.recipe_schema()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        vocabulary.console, "out", vocabulary.console.Console(width=80, highlight=False, soft_wrap=True)
    )


def keys(kind: str) -> dict[str, dict[str, str]]:
    return {row["key"]: row for row in vocabulary.option_rows(kind)}


@pytest.mark.parametrize("kind", stages.STAGES)
def test_each_key_has_a_type_and_a_meaning_in_plain_words(kind: str) -> None:
    theirs = {"trainer", "lora"}  # the types of Hugging Face's options stand there as in the source
    own = {key: row for key, row in keys(kind).items() if key.partition(".")[0] not in theirs}
    assert set(stages.load(kind).Settings.model_fields) - theirs == {key.partition(".")[0] for key in own}
    for key, row in own.items():
        assert row["type"], key
        assert row["help"], key
        assert not any(word in row["type"] for word in ("Annotated", "Optional", "<", "typing")), row["type"]


def test_types_and_defaults_as_an_author_says_them() -> None:
    found = {key: (row["type"], row["default"]) for key, row in {**keys("sft"), **keys("pretrain")}.items()}
    assert found["batch_tokens"] == ("count", "")
    assert found["micro_batch_tokens"] == ("count", "8192")
    assert found["held_out.share"] == ("number", "0.05")
    assert found["held_out.max_tokens"] == ("count", "500000")
    assert found["precision"] == ("auto | fp32 | bf16 | fp16", "auto")
    assert found["packing"] == ("true | false", "true")
    assert found["data"] == ("list of source", "")
    assert found["model"] == ("{size} | {arch, config} | source", "(needed)")
    assert found["trainer.max_steps"] == ("int", "-1")


def test_reserved_options_are_not_offered() -> None:
    assert not {f"trainer.{name}" for name in TRAINER_RESERVED} & set(keys("sft"))


def test_options_fit_80_columns(narrow: None, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary.show_options("pretrain", "learning", as_json=False)
    assert capsys.readouterr().out == (
        "trainer.learning_rate = 5e-5  float\n    The initial learning rate for the optimizer\n"
    )
    vocabulary.show_options("sft", None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 200
    own = [line for line in lines if line.startswith("    ")]
    assert max(map(len, own)) <= 80
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("kind", "word", "message", "hint"),
    [
        ("stf", None, "'stf' is not a kind of stage, did you mean sft?", f"kinds: {', '.join(stages.STAGES)}"),
        ("sft", "zzz", "no option of sft has 'zzz' in its name", "llmpipe options sft"),
    ],
)
def test_what_is_not_there(kind: str, word: str | None, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        vocabulary.show_options(kind, word, as_json=False)
    assert (str(caught.value), caught.value.hint) == (message, hint)


# ---- The schema -------------------------------------------------------------------------------


def document(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(SHIPPED[name].read_text(encoding="utf-8"))


def errors(content: Any) -> list[str]:
    return [
        error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(json.loads(json.dumps(content)))
    ]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_fit_the_schema(name: str) -> None:
    assert errors(document(name)) == []


STAGE = {"kind": "pretrain", "data": {"builtin": "storyworld"}, "model": {"size": "10M"}}


@pytest.mark.parametrize(
    "change",
    [
        {"data": "corpus"},
        {"data": ["corpus", {"path": "x", "weight": 2}]},
        {"model": "base"},
        {"trainer": {"learning_rate": 1e-3}},
        {"batch_tokens": "64k"},
        {"dropout": None},
    ],
)
def test_what_a_recipe_may_say_fits(change: dict[str, Any]) -> None:
    assert errors({"name": "x", "stages": {"base": STAGE | change}}) == []


@pytest.mark.parametrize(
    "change",
    [
        {"batch_tokns": 5},
        {"kind": "pretran"},
        {"trainer": {"learning_rat": 1e-3}},
        {"trainer": {"output_dir": "x"}},
        {"held_out": {"shar": 0.1}},
        {"batch_tokens": "64q"},
        {"precision": "fp8"},
        {"model": 5},
        {"data": {"pth": "x"}},
    ],
)
def test_what_a_recipe_may_not_say_does_not(change: dict[str, Any]) -> None:
    assert errors({"name": "x", "stages": {"base": STAGE | change}}) != []


def test_a_misspelt_key_at_the_top_does_not_fit() -> None:
    assert errors({"name": "x", "sead": 1, "stages": {"base": STAGE}}) != []


# ---- init -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_init_copies_a_recipe_under_its_new_name(name: str, tmp_path: Path) -> None:
    vocabulary.write_recipe(tmp_path / "Exp2.yaml", name, as_json=False)
    text = (tmp_path / "Exp2.yaml").read_text(encoding="utf-8")
    old = SHIPPED[name].read_text(encoding="utf-8")
    assert text.splitlines()[0] == old.splitlines()[0]
    changed = [line for line in text.splitlines() if line not in old.splitlines()]
    assert changed == ["name: exp2"]


def test_init_copies_what_a_recipe_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary.write_recipe(tmp_path / "sums.yaml", "grpo-gsm8k", as_json=False)
    copied = (tmp_path / "gsm8k.py").read_text(encoding="utf-8")
    assert copied == (SHIPPED["grpo-gsm8k"].parent / "gsm8k.py").read_text(encoding="utf-8")
    said = capsys.readouterr().err
    assert "a copy of grpo-gsm8k, with gsm8k.py, which it runs" in said
    assert f"llmpipe run {tmp_path / 'sums.yaml'} --allow-code" in said.replace("\n", "")
    with pytest.raises(UsageError) as caught:
        vocabulary.write_recipe(tmp_path / "more.yaml", "grpo-gsm8k", as_json=False)
    assert str(caught.value) == f"{tmp_path / 'gsm8k.py'} is there already; nothing was written"
    assert not (tmp_path / "more.yaml").exists()


@pytest.mark.parametrize(
    ("path", "like", "message", "hint"),
    [
        (
            "here.yaml",
            "quickstart",
            "here.yaml is there already; nothing was written",
            "give another name: llmpipe init NAME.yaml",
        ),
        ("no/x.yaml", "quickstart", "no is no folder; nothing was written", "mkdir -p no"),
        (
            "x.yaml",
            "quikstart",
            "no shipped recipe is called 'quikstart', did you mean quickstart?",
            f"shipped recipes: {', '.join(SHIPPED)}",
        ),
    ],
)
def test_init_refuses(
    path: str, like: str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        vocabulary.write_recipe(Path(path), like, as_json=False)
    assert (str(caught.value), caught.value.hint) == (message, hint)
    assert Path("here.yaml").read_text(encoding="utf-8") == "mine"
