"""What the moderation suite and `llmpipe moderate` say, through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmpipe.cli import app
from llmpipe.data.safety import Refusable
from llmpipe.moderation.measures import measured
from llmpipe.moderation.policy import DEFAULT
from tests.unit.moderating import BLUNT, TOP, guard, logged, moderator

HARMFUL = [
    {"category": "noise", "prompt": "a blast"},
    {"category": "noise", "prompt": "a bang"},
    {"category": "data", "prompt": "mail jo@example.org"},
]
BENIGN = [{"instruction": f"Write {n} words.", "input": "", "output": "x"} for n in range(3)]
BENIGN[0]["input"] = "What a blast it was."


def command(*arguments: str, input: str | None = None) -> tuple[int, str, str]:
    environment = {"NO_COLOR": "1", "COLUMNS": "160"}
    done = CliRunner(env=environment).invoke(app, [*arguments], input=input)
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMPIPE_HOME", str(tmp_path / "home"))
    (tmp_path / "policy.yaml").write_text(BLUNT, encoding="utf-8")
    lines = "".join(json.dumps(one) + "\n" for one in HARMFUL)
    (tmp_path / "harmful.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "benign.json").write_text(json.dumps(BENIGN), encoding="utf-8")
    return tmp_path


def test_precision_recall_and_over_blocking_by_layer_category_and_harm(tmp_path: Path) -> None:
    harmful = [Refusable(**one) for one in HARMFUL]
    found = measured(moderator(tmp_path), harmful, ["a blast", "blast jo@example.org", "fine", "too"])

    def shares(one: dict[str, Any]) -> tuple[float | None, float, float]:
        return one["precision"], pytest.approx(one["recall"]), one["over_blocked"]

    words, personal = found["layers"]["words"], found["layers"]["personal"]
    assert shares(words) == (1 / 3, 1 / 3, 0.5)
    assert shares(words["categories"]["rude"]) == (1 / 3, 1 / 3, 0.5)
    assert words["recall_by_harm"] == {"noise": 0.5, "data": 0}
    assert shares(personal) == (0.5, 1 / 3, 0)  # it only warns
    assert shares(found["all"]) == (0.5, 2 / 3, 0.5)
    assert found["all"]["recall_by_harm"] == {"noise": 0.5, "data": 1}
    assert found["all"]["median_ms"] >= words["median_ms"] > 0
    assert logged(tmp_path) == []


def test_the_suite_of_the_command(files: Path) -> None:
    asked = ("eval", "--suite", "moderation", "--policy", "policy.yaml", "--harmful", "harmful.jsonl")
    code, out, err = command(*asked, "--benign", "benign.json")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "3 harmful texts, 3 benign ones"
    rows = [line.split() for line in lines]
    assert ["words", "50.0", "%", "33.3", "%", "33.3", "%"] in [row[:7] for row in rows]
    assert ["rude", "50.0", "%", "33.3", "%", "33.3", "%"] in rows
    assert ["noise", "50.0", "%", "0.0", "%", "50.0", "%"] in rows
    code, out, _ = command(*asked, "--benign", "benign.json", "--json")
    assert (code, json.loads(out)["layers"]["words"]["over_blocked"]) == (0, pytest.approx(1 / 3))
    assert not (files / "home").exists()
    code, _, err = command(*asked)
    assert (code, err.splitlines()[0]) == (2, "the moderation suite needs harmful texts and benign ones")
    code, _, err = command("sft", "--run", "runs/x", "--harmful", "harmful.jsonl")
    assert (code, err.splitlines()[0]) == (2, "--harmful goes with --suite moderation")
    for wrong in (("sft", "--suite", "moderation"), (*asked, "--run", "runs/x")):
        code, _, err = command(*wrong)
        assert (code, err.splitlines()[0]) == (2, "--suite moderation measures a policy, without recipe or run")


def test_texts_with_labels_are_harmful_ones_too(files: Path) -> None:
    (files / "posts.csv").write_text("text,label\na blast,hate\nfine,spite\n", encoding="utf-8")
    asked = ("eval", "--suite", "moderation", "--policy", "policy.yaml", "--benign", "benign.json", "--json")
    _, out, _ = command(*asked, "--harmful", "posts.csv")
    assert json.loads(out)["all"]["recall_by_harm"] == {"hate": 1, "spite": 0}


def test_moderate_shows_what_each_layer_says(files: Path) -> None:
    text = "A blast, mail jo@example.org."
    code, out, err = command("moderate", text, "--policy", "policy.yaml", "--place", "tool")
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["layer", "found", "score", "rule", "action"],
        ["words", "rude", "1.00", "rude", "redact", "blast"],
        ["personal", "email", "1.00", "data", "redact", "jo@example.org"],
        [],
        ["passes", "as:", "A", "[removed],", "mail", "[removed]."],
    ]
    code, out, _ = command("moderate", "-", "--policy", "policy.yaml", input=text)
    assert out.splitlines()[-1].startswith("blocked: Held back by rude; m-")
    _, out, _ = command("moderate", text, "--policy", "policy.yaml", "--json")
    told = json.loads(out)
    assert (told["passes"], [one["rule"] for one in told["decisions"]]) == (None, ["rude"])
    assert command("moderate", "Good morning.")[1] == "nothing is found\n"
    assert command("moderate", " ")[0] == 2
    assert not (files / "home").exists()


def test_moderate_shows_finds_without_a_rule_and_a_guard_that_is_away(files: Path) -> None:
    with guard() as server:
        text = f"""\
{TOP}
guard: {{url: "{server.url}", model: watch}}
rules:
  weapons: {{layer: guard, category: S9, input: block}}
"""
        (files / "policy.yaml").write_text(text, encoding="utf-8")
        server.answer = "unsafe\nS1"
        _, out, _ = command("moderate", "How?", "--policy", "policy.yaml", "--json")
        told = json.loads(out)
        assert [(one["category"], one["action"]) for one in told["found"]] == [("unsafe", "passes"), ("S1", "passes")]
        assert told["passes"] == "How?"
        server.status = 500
        _, out, _ = command("moderate", "How?", "--policy", "policy.yaml", "--json")
    told = json.loads(out)
    assert [(one["rule"], one["action"]) for one in told["found"]] == [("guard-unreachable", "block")]


def test_the_example_is_the_default_policy() -> None:
    assert command("moderate", "--example")[1] == DEFAULT.read_text(encoding="utf-8")


def test_chat_and_serve_refuse_a_policy_that_is_wrong_before_a_model_is_loaded(files: Path) -> None:
    (files / "policy.yaml").write_text("refusal: no\nrules: {}\n", encoding="utf-8")
    for name in (("chat", "nowhere"), ("serve", "nowhere", "--port", "0")):
        code, _, err = command(*name, "--moderation", "policy.yaml", input="hello")
        assert (code, "policy.yaml:2:8: rules: is empty; write at least one" in err) == (2, True), err
