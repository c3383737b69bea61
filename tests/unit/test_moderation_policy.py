"""A policy is checked whole: each mistake with its line, before a model is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmpipe.errors import DataError, RecipeError, UsageError
from llmpipe.moderation.opening import layers_of, moderator
from llmpipe.moderation.policy import DEFAULT, load
from tests.unit.moderating import BLUNT, TOP, policy


def said(folder: Path, text: str) -> list[str]:
    with pytest.raises(RecipeError) as refused:
        policy(folder, text)
    return [str(one).removeprefix(f"{folder / 'policy.yaml'}:") for one in refused.value.problems]


def test_the_packaged_policy_is_valid_and_its_examples_are_too(tmp_path: Path) -> None:
    assert load(DEFAULT).rules["slurs"].input == "block"
    commented = [line.removeprefix("# ") for line in DEFAULT.read_text(encoding="utf-8").splitlines()]
    keys = ("words:", "  rivals:", "classifier:", "guard:")
    rules = [line for line in commented if line.startswith(("  hate:", "  guarded:"))]
    assert len(rules) == 2
    text = DEFAULT.read_text(encoding="utf-8").replace("rules:\n", "rules:\n" + "\n".join(rules) + "\n", 1)
    found = policy(tmp_path, text + "\n" + "\n".join(line for line in commented if line.startswith(keys)))
    assert found.guard is not None
    assert (found.guard.unreachable, found.lists["rivals"]) == ("block", ["acme", "acme corporation"])
    assert found.categories("classifier") == ["hate"]


def test_every_mistake_of_the_keys_is_told_with_its_place(tmp_path: Path) -> None:
    text = f"""\
{TOP}rules:
  a: {{layer: personal, category: key}}
  b: {{layer: personal, category: key, inptu: block, tool: blok}}
  E: {{layer: words, category: mild, input: log}}
gard: {{}}
"""
    assert said(tmp_path, text) == [
        "3:3: rules.a: does nothing: say what becomes of it, such as `input: block`",
        "4:59: rules.b.tool: must be 'block', 'redact', 'warn' or 'log', not 'blok'",
        "4:39: rules.b.inptu: unknown key, did you mean input?",
        "5:3: rules.E: must be a name of lower-case letters, digits, - and _, beginning with a letter, not 'E'",
        "6:1: gard: unknown key, did you mean guard?",
    ]


def test_layers_that_are_not_there_and_what_they_do_not_find(tmp_path: Path) -> None:
    text = """\
refusal: No.
guard: {url: "http://127.0.0.1:1/v1", model: m}
words: {own: []}
rules:
  a: {layer: words, category: sever, input: block}
  b: {layer: classifier, category: hate, input: block}
  c: {layer: personal, category: [email, name], input: log}
"""
    assert said(tmp_path, text) == [
        "1:10: refusal: must have {reference}, by which people appeal",
        "3:14: words.own: must be a list of words",
        "5:31: rules.a.category: the layer words finds no 'sever', did you mean severe?",
        "6:14: rules.b.layer: needs `classifier: {model: RUN:STAGE}` at the top of the policy",
        "7:34: rules.c.category: the layer personal finds no 'name'; it finds email, phone, ip, iban, card, key",
        "2:1: guard: no rule has `layer: guard`",
    ]


def test_what_is_no_policy_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no policy nowhere"):
        moderator("nowhere")
    with pytest.raises(RecipeError, match="is a folder, not a policy"):
        load(tmp_path)
    with pytest.raises(RecipeError) as empty:
        policy(tmp_path, "")
    assert empty.value.hint == "a policy to start from: llmpipe moderate --example > policy.yaml"
    assert said(tmp_path, "- a\n") == ["1:1: a policy is a mapping with `refusal:` and `rules:`"]
    assert moderator("off") is None


def test_a_classifier_has_to_have_the_classes_of_the_rules(tmp_path: Path) -> None:
    text = BLUNT + "  hate: {layer: classifier, category: hat, input: block}\nclassifier: {model: own}\n"
    found = policy(tmp_path, text)
    with pytest.raises(UsageError, match="no such run, stage, folder or GGUF file"):
        layers_of(found, tmp_path)
    (tmp_path / "own").mkdir()
    config = {"id2label": {"0": "hate", "1": "neither"}, "architectures": ["ModernBertForSequenceClassification"]}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(DataError, match="this classifier has no class 'hat', did you mean hate"):
        layers_of(found, tmp_path)


def test_the_key_of_a_guard_is_looked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUARD_KEY", raising=False)
    text = f"""\
{TOP}guard: {{url: "http://127.0.0.1:1/v1", model: m, key_variable: GUARD_KEY}}
rules: {{g: {{layer: guard, category: S1, input: block}}}}
"""
    with pytest.raises(UsageError, match="the environment variable GUARD_KEY is not set"):
        layers_of(policy(tmp_path, text), tmp_path)


def test_rules_and_guards_need_no_torch() -> None:
    code = (
        "import sys; from llmpipe.moderation.opening import opened; opened('default')\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
