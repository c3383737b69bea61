"""Every key of every stage and every Hugging Face option is in the fingerprint, unless it is named as cosmetic."""

from __future__ import annotations

import json
import shutil
import typing
from pathlib import Path
from typing import Any

import pytest

from llmpipe import passthrough, stages
from llmpipe import recipe as recipes
from llmpipe.artifact import Input, StepRecord
from llmpipe.changes import changed_keys
from llmpipe.plan import Selection, Step, make_plan
from llmpipe.settings import COSMETIC, Passthrough

RECIPE = """\
name: x
stages:
  tok: {kind: tokenizer, data: {path: a.txt}}
  other: {kind: tokenizer, data: {path: b.txt}}
  base: {kind: pretrain, data: {path: a.txt}, model: {size: 1M}, tokenizer: tok}
  hidden: {kind: pretrain, data: {path: a.txt}, model: {size: 1M}, tokenizer: tok, objective: masked}
  chat: {kind: sft, data: {builtin: storyworld}, model: base}
  tuned: {kind: lora, data: {builtin: storyworld}, model: base}
  judge: {kind: reward, data: {path: a.txt}, model: base}
  direct: {kind: dpo, data: {path: a.txt}, model: base}
  told: {kind: classify, data: {path: a.txt}, model: base}
  rated: {kind: kto, data: {path: a.txt}, model: base}
  ppo: {kind: rlhf-ppo, data: {path: a.txt}, model: base, reward: judge}
  left: {kind: rloo, data: {path: a.txt}, model: base, reward: judge}
  group: {kind: grpo, data: {path: a.txt}, model: base, reward: judge}
  scores: {kind: eval, models: [base], data: base, suites: [perplexity]}
  contest: {kind: eval, models: [base, chat], suites: [samples], prompts: [a], win_rate: &won {of: chat, against: base},
            judge: judge}
  people: {kind: eval, models: [base, chat], suites: [samples], prompts: [a], win_rate: *won, rankings: {path: a.txt}}
  corpus: {kind: curate, data: {path: a.txt}, steps: [decontaminate], evaluation: {path: a.txt}}
  decent: {kind: curate, data: {path: a.txt}, steps: [{step: toxicity, labels: [bad]}], classifier: told}
"""
NAMES = {"tokenizer": "tok", "pretrain": "base", "sft": "chat", "lora": "tuned", "reward": "judge", "dpo": "direct"}
NAMES |= {"classify": "told", "kto": "rated", "rlhf-ppo": "ppo", "rloo": "left", "grpo": "group"}
NAMES |= {"eval": "scores", "curate": "corpus"}
ELSEWHERE = {("pretrain", key): "hidden" for key in ("objective", "whole_word")}
ELSEWHERE |= {("eval", "judge"): "contest", ("eval", "win_rate"): "people", ("eval", "rankings"): "people"}
ELSEWHERE |= {("curate", "classifier"): "decent"}
"""Stages for keys that the one of the same kind above cannot change: what it makes is used, or they are for another."""
VALUES: dict[Any, Any] = {
    "objective": "denoising",
    "data": {"path": "b.txt"},
    "evaluation": {"path": "b.txt"},
    "steps": [{"step": "decontaminate", "words": 8}],
    "split": {"validation": 0.1},
    "tokenizer": "other",
    "compare": {"stage": "other"},
    "model": {"size": "2M"},
    "models": ["chat"],
    "held_out": {"share": 0.2},
    "suites": ["samples"],
    "tasks": [{"text": {"path": "b.txt"}}],
    "special_tokens": ["<a>"],
    "chat_template": "{{ messages }}",
    "prompts": ["a"],
    "batch_tokens": 1234,
    "precision": "fp32",
    "trainer": {"weight_decay": 0.3},
    "criteria": {"short": 2.0},
    "reward": {"hub": "a/b"},
    "rollout": {"samples": 32},
    "kl": {"coefficient": 0.3},
    "length_penalty": {"begin": 100},
    "minibatches": 4,
    "dual_clip": 2.5,
    "lora": {"r": 4},
    "quantize": None,  # without lora:, that is
    ("lora", "quantize"): "nf4",
    ("sft", "model"): {"hub": "a/b"},
    ("lora", "model"): {"hub": "a/b"},
    ("reward", "model"): {"hub": "a/b"},
    ("dpo", "model"): {"hub": "a/b"},
    ("kto", "model"): {"hub": "a/b"},
    ("classify", "model"): {"hub": "a/b"},
    "labels": {"0": "bad"},
    ("dpo", "dropout"): 0.0,
    ("kto", "dropout"): 0.0,
    ("rlhf-ppo", "model"): {"hub": "a/b"},
    ("rlhf-ppo", "dropout"): 0.0,
    ("eval", "data"): "chat",
    "engine": "datatrove",
    "classifier": {"hub": "a/b"},
    "win_rate": {"of": "base", "against": "chat"},
    "judge": {"hub": "a/b"},
    "rankings": {"path": "b.txt"},
    "questions": {"path": "b.txt"},
    "refusals": {"path": "b.txt"},
    "pronouns": {"path": "b.txt"},
}
VALUES |= {(kind, "model"): {"hub": "a/b"} for kind in ("rloo", "grpo")}
VALUES |= {(kind, "dropout"): 0.0 for kind in ("rloo", "grpo")}
"""Another valid value for the keys whose type does not lead to one, where it must be for one kind alone."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(f"{name}.txt").write_text(name, encoding="utf-8")
    Path("r.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def plan(*overrides: str, **selection: Any) -> dict[str, Step]:
    recipe = recipes.load(Path("r.yaml"), overrides=overrides)
    return {step.name: step for step in make_plan(recipe, Path("run"), selection=Selection(**selection))}


def another(annotation: Any, value: Any) -> Any:
    """Return a value of the type that is not `value`."""
    if isinstance(value, bool):
        return not value
    choices = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
    if choices:
        return next((choice for choice in choices if choice != value), None)
    return 0.25 if "float" in str(annotation) else 777


KEYS = [(kind, key) for kind in stages.STAGES for key in stages.load(kind).Settings.model_fields if key != "kind"]
KEYS.remove(("curate", "processes"))
KEYS.remove(("eval", "fail_if"))  # bounds are looked up in the manifest: tests/unit/test_bounds.py


@pytest.mark.parametrize("kind", stages.STAGES)
def test_a_stage_reads_the_settings_that_a_plan_writes_down(place: Path, kind: str) -> None:
    """With every default said, as a worker gets them."""
    record = plan()[NAMES[kind]].record
    settings = stages.load(kind).Settings.model_validate(json.loads(record.model_dump_json())["settings"])
    assert settings.model_dump(mode="json") == record.settings


def test_the_number_of_processes_does_not_count(place: Path) -> None:
    before, after = plan()["corpus"].record, plan("corpus.processes=3")["corpus"].record
    assert before.settings != after.settings
    assert before.fingerprint == after.fingerprint


def test_every_kind_is_in_the_table() -> None:
    assert set(NAMES) == set(stages.STAGES)


@pytest.mark.parametrize(("kind", "key"), KEYS)
def test_every_key_counts(place: Path, kind: str, key: str) -> None:
    settings, name = stages.load(kind).Settings, ELSEWHERE.get((kind, key), NAMES[kind])
    info = settings.model_fields[key]
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    value = {"stage": "other"} if key == "tokenizer" else VALUES.get(key, another(info.annotation, default))
    value = VALUES.get((kind, key), value)
    if value is None:
        pytest.skip("there is one choice only")
    before, after = plan()[name].record, plan(f"{name}.{key}={json.dumps(value)}")[name].record
    assert before.fingerprint != after.fingerprint
    assert list(changed_keys(before, after)) != []
    assert all(text.startswith(key) for text in changed_keys(before, after))


@pytest.mark.parametrize(
    "kind", [kind for kind in stages.STAGES if "trainer" in stages.load(kind).Settings.model_fields]
)
def test_every_option_of_the_trainer_counts_but_the_cosmetic_ones(place: Path, kind: str) -> None:
    """The options are put into valid settings directly: what value each may have does not matter here."""
    recipe = recipes.load(Path("r.yaml"))
    name = NAMES[kind]
    info = type(recipe.stages[name]).model_fields["trainer"]
    (extra,) = (extra for extra in info.metadata if isinstance(extra, Passthrough))
    original, base = recipe.stages[name], make_plan(recipe, Path("run"))
    before = next(step.record.fingerprint for step in base if step.name == name)
    same = set()
    for option in passthrough.options_of(extra.config_class):
        if option not in extra.reserved:
            recipe.stages[name] = original.model_copy(update={"trainer": {option: "x"}})
            after = next(step.record.fingerprint for step in make_plan(recipe, Path("run")) if step.name == name)
            same |= {option} if after == before else set()
    assert same == COSMETIC & set(passthrough.options_of(extra.config_class)) - set(extra.reserved)
    assert same  # an empty list would make the line above true of nothing


def test_a_change_reaches_what_follows_and_nothing_else(place: Path) -> None:
    before, after = plan(), plan("base.dropout=0.5")
    changed = {name for name in before if before[name].record.fingerprint != after[name].record.fingerprint}
    trained = {"base", "chat", "tuned", "told", "judge", "direct", "rated", "ppo", "left", "group"}
    assert changed == {*trained, "scores", "contest", "people", "decent"}


def test_names_and_places_do_not_count(place: Path) -> None:
    before = {name: step.record.fingerprint for name, step in plan().items()}
    Path("data").mkdir()
    shutil.move("a.txt", "data/renamed.txt")
    text = (
        RECIPE.replace("a.txt", "data/renamed.txt")
        .replace("tok:", "words:")
        .replace("tokenizer: tok", "tokenizer: words")
    )
    Path("r.yaml").write_text(text, encoding="utf-8")
    after = {name: step.record.fingerprint for name, step in plan("name=y").items()}
    assert list(after.values()) == list(before.values())


# ---- The words for a change -------------------------------------------------------------------


def record(settings: dict[str, Any], *inputs: Input, kind: str = "sft", version: int = 1, seed: int = 1) -> StepRecord:
    return StepRecord(
        name="a", kind=kind, stage_version=version, fingerprint="", seed=seed, settings=settings, inputs=list(inputs)
    )


def stage(name: str, identity: str, **more: Any) -> Input:
    return Input(field="model", source={"stage": name, **more}, identity=identity)


def files(identity: str, path: str = "/d/*.txt", **digests: str) -> Input:
    found = {f"/d/{name}.txt": digest for name, digest in digests.items()}
    return Input(field="data", source={"path": path, "format": None}, identity=identity, files=found)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (record({"lr": 2e-5}), record({"lr": 1e-5}), ["lr 2e-5 → 1e-5"]),
        (record({"t": {}}), record({"t": {"a": True, "b": "x"}}), ["t.a unset → true", "t.b unset → x"]),
        (record({"t": {"a": 1}}), record({"t": {}}), ["t.a 1 → unset"]),
        (record({"p": ["a"]}), record({"p": []}), ['p ["a"] → []']),
        (record({"trainer": {"logging_steps": 1}}), record({"trainer": {}}), []),
        (record({}), record({}, seed=2), ["seed 1 → 2"]),
        (record({}), record({}, version=2), ["llmpipe's sft stage is newer (version 1 → 2)"]),
        (record({"a": 1}), record({"b": 1}, kind="eval"), ["kind sft → eval"]),
        (record({}, stage("base", "1")), record({}, stage("base2", "2")), ["model base → base2"]),
        (record({}, stage("base", "1")), record({"model": {"size": 5}}), ['model base → {"size": 5}']),
        (record({}, stage("b", "1", weight=1.0)), record({}, stage("b", "2", weight=2.0)), ["model.weight 1.0 → 2.0"]),
        (record({}, files("1", x="a", y="b")), record({}, files("2", x="a", y="c")), ["y.txt changed"]),
        (record({}, files("1", x="a", y="b")), record({}, files("2", x="a")), ["*.txt changed"]),
        (record({}, files("1", x="a")), record({}, files("2", path="/d/x.txt", x="b")), ["data /d/*.txt → /d/x.txt"]),
        (record({}, files("1", path="/d/x.txt", x="a")), record({}, files("1", path="/e/x.txt", x="a")), []),
    ],
)
def test_changes_in_words(old: StepRecord, new: StepRecord, wanted: list[str]) -> None:
    assert list(changed_keys(old, new)) == wanted
