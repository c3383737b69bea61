"""`llmpipe generate`: prompts from arguments, a file or stdin; answers as text or as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmpipe.cli import app
from tests.stages.tiny import run_recipe

RECIPE = """\
name: tiny
stages:
  tok: {kind: tokenizer, data: {builtin: storyworld, rows: 100}, vocab_size: 300}
  base:
    kind: pretrain
    data: {builtin: storyworld, rows: 40}
    model: {arch: llama, config: {num_hidden_layers: 1, hidden_size: 16, intermediate_size: 16, num_attention_heads: 2}}
    context: 64
    trainer: {per_device_train_batch_size: 4, max_steps: 1}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run directory."""
    return run_recipe(tmp_path_factory.mktemp("tiny"), RECIPE)


def generated(*arguments: object, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)], input=stdin)


def test_answers_repeat_with_the_seed_and_differ_among_themselves(run: Path) -> None:
    how = ("Once", "-n", 3, "--temperature", 1, "--max-new-tokens", 8, "--json")
    one, same, other = (generated(f"{run}:base", *how, "--seed", seed) for seed in (1, 1, 2))
    assert one.exit_code == 0, one.output
    assert one.stdout == same.stdout != other.stdout
    (line,) = map(json.loads, one.stdout.splitlines())
    assert line["prompt"] == "Once" and len({answer["text"] for answer in line["answers"]}) == 3


def test_a_run_means_its_last_model(run: Path) -> None:
    named, whole = (generated(name, "Once", "--max-new-tokens", 5) for name in (run / "base", run))
    assert named.stdout == whole.stdout != ""
    assert f"{run}: its last model, base" in whole.stderr.replace("\n", "")


def test_prompts_of_a_file_and_of_stdin(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "One"}\n{"prompt": "Two"}\n', encoding="utf-8")
    rows = generated(f"{run}:base", "--prompts", file, "--max-new-tokens", 4, "--json")
    lines = generated(f"{run}:base", "--max-new-tokens", 4, "--json", stdin="One\n\nTwo\n")
    assert [json.loads(line)["prompt"] for line in rows.stdout.splitlines()] == ["One", "Two"]
    assert rows.stdout == lines.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "-n", "2"], "greedy answers are all the same"),
        (["x", "--prompts", "x"], "prompts come from arguments or from a file; leave one of them out"),
        ([], "there is no prompt"),
    ],
)
def test_mistakes(run: Path, arguments: list[str], message: str) -> None:
    done = generated(f"{run}:base", *arguments, stdin="")
    assert done.exit_code == 2 and message in done.stderr
