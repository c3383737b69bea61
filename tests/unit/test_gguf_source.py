"""GGUF files as sources: what is refused and how, what identifies one, and how flags, plans and cards name it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from llmpipe import cards, packages, recipe_edit, vocabulary, yaml_tree
from llmpipe import recipe as recipes
from llmpipe.artifact import write_json
from llmpipe.changes import changed_keys
from llmpipe.cli import app
from llmpipe.errors import RecipeError, UsageError
from llmpipe.plan import Step, make_plan
from llmpipe.settings import GgufSource, HubSource, StageSource
from llmpipe.stages.evaluate import labels
from tests.unit.test_export import made

CHAT = "name: x\nstages:\n  chat: {kind: sft, data: {builtin: storyworld}, model: MODEL}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/small-Q4_1.gguf").write_bytes(b"GGUF and the rest")


def plan(text: str = CHAT, model: str = "{gguf: models/small-Q4_1.gguf}") -> dict[str, Step]:
    Path("r.yaml").write_text(text.replace("MODEL", model), encoding="utf-8")
    return {step.name: step for step in make_plan(recipes.load(Path("r.yaml")), Path("run"))}


REFUSED = {
    "{gguf: models/smal-Q4_1.gguf}": (
        "r.yaml:3:64: stages.chat.model.gguf: no such file: models/smal-Q4_1.gguf, did you mean small-Q4_1.gguf?"
    ),
    "{gguf: models/other.gguf}": (
        "r.yaml:3:64: stages.chat.model.gguf: no such file: models/other.gguf; beside it: small-Q4_1.gguf"
    ),
    "{gguf: none/other.gguf}": "r.yaml:3:64: stages.chat.model.gguf: no such file: none/other.gguf",
    "{gguf: r.yaml}": "r.yaml:3:64: stages.chat.model.gguf: write a file that ends in .gguf, not 'r.yaml'",
    "{gguf: bad.gguf}": ("r.yaml:3:64: stages.chat.model.gguf: bad.gguf is no GGUF file: it begins with other bytes"),
    "{path: models/small-Q4_1.gguf}": (
        "r.yaml:3:64: stages.chat.model.path: models/small-Q4_1.gguf is a GGUF file; "
        "write {gguf: models/small-Q4_1.gguf}"
    ),
    "{gguf: bad.gguf, path: models}": "r.yaml:3:57: stages.chat.model: name one source, not both path and gguf",
    "{builtin: storyworld}": (
        "r.yaml:3:57: stages.chat.model: `builtin:` does not fit here; it may be stage, path, hub or gguf"
    ),
}


@pytest.mark.parametrize("model", REFUSED)
def test_mistakes_are_found_in_the_recipe(model: str) -> None:
    Path("bad.gguf").write_bytes(b"PK")
    with pytest.raises(RecipeError) as failure:
        plan(model=model)
    assert str(failure.value).splitlines()[0] == REFUSED[model]


def test_data_is_no_gguf_file() -> None:
    with pytest.raises(RecipeError, match="`gguf:` does not fit here; it may be stage, path, hub or builtin"):
        plan(CHAT.replace("{builtin: storyworld}", "{gguf: models/small-Q4_1.gguf}"), "{hub: a/b}")


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        ("{kind: pretrain, data: {builtin: storyworld}, model: MODEL}", "model"),
        ("{kind: pretrain, data: {builtin: storyworld}, model: {size: 1M}, tokenizer: MODEL}", "tokenizer"),
        ("{kind: lora, data: {builtin: storyworld}, model: MODEL}", "model"),
        ("{kind: reward, data: {builtin: storyworld}, model: MODEL}", "model"),
        ("{kind: dpo, data: {builtin: storyworld}, model: MODEL}", "model"),
        ("{kind: rlhf-ppo, data: {builtin: storyworld}, reward: {hub: a/b}, model: MODEL}", "model"),
        ("{kind: grpo, data: {builtin: storyworld}, reward: {hub: a/b}, model: MODEL}", "model"),
        ("{kind: eval, models: [MODEL], suites: [samples]}", "models"),
    ],
)
def test_every_stage_can_begin_from_one(stage: str, field: str) -> None:
    step = plan(f"name: x\nstages:\n  it: {stage}\n")["it"]
    (entry,) = (entry for entry in step.record.inputs if entry.field == field)
    assert entry.source["gguf"] == str(Path("models/small-Q4_1.gguf").absolute())
    assert list(entry.files) == [entry.source["gguf"]]
    assert "models/small-Q4_1.gguf" in step.inputs
    written = yaml_tree.read(Path("r.yaml")).data
    Draft202012Validator(vocabulary.recipe_schema()).validate(written)


def test_the_content_is_identified_and_not_its_place() -> None:
    before = plan()["chat"].record
    Path("moved.gguf").write_bytes(Path("models/small-Q4_1.gguf").read_bytes())
    assert plan(model="{gguf: moved.gguf}")["chat"].record.fingerprint == before.fingerprint
    Path("models/small-Q4_1.gguf").write_bytes(b"GGUF and something else")
    after = plan()["chat"].record
    assert after.fingerprint != before.fingerprint
    assert list(changed_keys(before, after)) == ["small-Q4_1.gguf changed"]
    assert list(changed_keys(before, plan(model="{hub: a/b}")["chat"].record)) == [
        f"model {Path('models/small-Q4_1.gguf').absolute()} → a/b"
    ]


def test_a_recipe_that_is_kept_names_the_whole_path() -> None:
    plan()
    recipe = recipes.load(Path("r.yaml"))
    kept = yaml_tree.parse(recipe_edit.text_as_used(recipe, []), shown_as="kept").data
    assert kept["stages"]["chat"]["model"] == {"gguf": str(Path("models/small-Q4_1.gguf").absolute())}


@pytest.mark.parametrize("flag", ["model", "tokenizer"])
def test_a_flag_may_name_one(flag: str) -> None:
    file = {"gguf": str(Path("models/small-Q4_1.gguf").absolute())}
    assert recipe_edit.source_from_flag("models/small-Q4_1.gguf", flag=flag, stages=[]) == file
    assert "path" in recipe_edit.source_from_flag("models/small-Q4_1.gguf", flag="data", stages=[])
    with pytest.raises(UsageError, match=f"--{flag} gone.gguf: no such file, folder or stage"):
        recipe_edit.source_from_flag("gone.gguf", flag=flag, stages=[])


def test_a_stage_command_takes_one(capsys: pytest.CaptureFixture[str]) -> None:
    Path("chat.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    command = [
        "lora",
        "--run",
        "run",
        "--data",
        "chat.jsonl",
        "--model",
        "models/small-Q4_1.gguf",
        "--dry-run",
        "--json",
    ]
    with pytest.raises(SystemExit) as ended:
        app(command)
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    assert not ended.value.code and step["inputs"][0] == str(Path("models/small-Q4_1.gguf").absolute())


def test_without_the_package_nothing_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = plan()["chat"]
    packages.refuse_without_gguf([step])
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    packages.refuse_without_gguf([plan(model="{hub: a/b}")["chat"], Step(step.record, "skip", "unchanged", [])])
    plan()
    with pytest.raises(SystemExit) as ended:
        app(["run", "r.yaml"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "models/small-Q4_1.gguf: stage chat needs the package gguf to read it, which is not installed\n\n"
        "hint: pip install gguf\n"
    )
    assert not Path("runs/x/recipe.yaml").exists() and not Path("runs/x/chat").exists()


def test_measures_are_named_by_the_file() -> None:
    files = [GgufSource(gguf=f"/a/{name}.gguf") for name in ("one", "two")]
    assert labels([*files, StageSource(stage="chat"), HubSource(hub="x/y")]) == ["one.gguf", "two.gguf", "chat", "x/y"]
    assert labels([files[0], GgufSource(gguf="/b/one.gguf")]) == ["/a/one.gguf", "/b/one.gguf"]


def test_a_card_names_the_file_and_its_content(tmp_path: Path) -> None:
    source = {"gguf": "/home/me/small-Q4_1.gguf", "weight": 1.0}
    made(tmp_path, "chat", "sft", {"field": "model", "source": source, "files": {source["gguf"]: "b" * 64}})
    write_json(tmp_path / "hub.json", {})
    facts = cards.Facts("mine", 1000, merged=False, reward=False, chat=True, gguf=None)
    text = cards.card(tmp_path, "chat", facts)
    assert "\n| chat | model | small-Q4_1.gguf | bbbbbbbbbbbb |\n" in text and "/home" not in text


def test_options_show_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary.show_options("sft", "model", as_json=True)
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["model"]["type"] == "source"
