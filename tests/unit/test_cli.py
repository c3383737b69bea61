"""The commands as they are typed: help, --json, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.main import get_command
from typer.testing import CliRunner

from llmpipe import artifact, console
from llmpipe.cli import app
from llmpipe.plan import make_plan
from llmpipe.recipe import load

GROUPS = {
    name: [f"{name} {part}" for part in command.commands] if hasattr(command, "commands") else [name]
    for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
}
COMMANDS = sorted(name for names in GROUPS.values() for name in names)
RECIPE = """\
name: x
stages:
  tok: {kind: tokenizer, data: {path: a.txt}}
  base: {kind: pretrain, data: {path: a.txt}, model: {size: 1M}}
  chat: {kind: sft, data: {builtin: storyworld}, model: base}
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("a.txt").write_text("text", encoding="utf-8")
    Path("r.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    """Run a command; the consoles are made anew, for they keep the stream that they were made with."""
    settings: dict[str, Any] = {"highlight": False, "soft_wrap": True, "width": 80}
    monkeypatch.setattr(console, "err", console.Console(stderr=True, **settings))
    monkeypatch.setattr(console, "out", console.Console(**settings))
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = call(monkeypatch, *command.split(), "--help")
    assert done.exit_code == 0
    assert "--json" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_version_and_bare_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "--version").stdout.startswith("llmpipe ")
    assert "quickstart" in call(monkeypatch).output


EXAMPLES = {
    "tokenizer": "llmpipe tokenizer --run runs/mine --data 'texts/*.txt'",
    "pretrain": "llmpipe pretrain --run runs/mine --data 'texts/*.txt' --model 10M",
    "sft": "llmpipe sft --run runs/mine --data chat.jsonl",
    "lora": "llmpipe lora --run runs/mine --data chat.jsonl",
    "reward": "llmpipe reward --run runs/mine --data pairs.jsonl",
    "dpo": "llmpipe dpo --run runs/mine --data pairs.jsonl",
    "rlhf-ppo": "llmpipe rlhf-ppo --run runs/mine --data prompts.jsonl --reward reward",
    "rloo": "llmpipe rloo --run runs/mine --data prompts.jsonl --reward reward",
    "grpo": "llmpipe grpo --run runs/mine --data prompts.jsonl --model sft --reward sums.py:exact_match --allow-code",
    "rlhf": "llmpipe rlhf --run runs/mine --model sft --data pairs.jsonl",
    "eval": "llmpipe eval --run runs/mine --model sft",
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_bare_stage_command_shows_an_example(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = call(monkeypatch, kind)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"llmpipe {kind} needs a recipe, or a run directory and flags\n\nhint: {EXAMPLES[kind]}\n"


REFUSED: dict[tuple[str, ...], tuple[str, str | None]] = {
    ("plan", "quikstart"): (
        "no recipe file or shipped recipe is called 'quikstart', did you mean quickstart?",
        "shipped recipes: ",
    ),
    ("plan", "gone.yaml"): ("gone.yaml: no such file", None),
    ("status", "runs/none"): (
        "runs/none is no run directory: it has no recipe.yaml",
        "llmpipe run RECIPE makes one",
    ),
    ("run", "r.yaml", "--only", "tokk"): ("no stage is called 'tokk', did you mean tok?", "stages: tok, base, chat"),
    ("run", "r.yaml", "--from", "chat"): (
        "chat needs base, which is not finished",
        "llmpipe run r.yaml --until base",
    ),
    ("sft", "r.yaml"): ("chat needs base, which is not finished", "llmpipe run r.yaml --until base"),
    ("eval", "r.yaml"): ("r.yaml has no eval stage", "its stages: tok (tokenizer), base (pretrain), chat (sft)"),
    ("sft", "r.yaml", "--name", "tok"): (
        "r.yaml has no sft stage tok",
        "its stages: tok (tokenizer), base (pretrain), chat (sft)",
    ),
    ("sft", "r.yaml", "--data", "a.txt"): (
        "--data goes with --run; in a recipe, inputs are written down",
        "llmpipe sft r.yaml --set data=...",
    ),
    ("tokenizer", "--run", "new", "--data", "b.txt"): (
        "--data b.txt: no such file, folder or stage",
        "a hub repository is written hub:OWNER/NAME",
    ),
    ("tokenizer", "--run", "new", "--model", "10M"): (
        "a tokenizer stage takes no --model",
        "llmpipe options tokenizer",
    ),
    ("sft", "--run", "new", "--data", "a.txt"): (
        "llmpipe sft: stages.sft: needs `model:` (causal-lm, adapter or seq2seq-lm), and no earlier stage makes one",
        None,
    ),
    ("sft", "--run", "new", "--model", "hub:a/b", "--data", "a.txt", "--set", "trainer.lerning_rate=1"): (
        "--set trainer.lerning_rate=1: stages.sft.trainer.lerning_rate: "
        "not an option of SFTConfig, did you mean learning_rate?",
        "llmpipe options sft learning",
    ),
    ("run", "r.yaml", "--in-process", "--processes", "2"): (
        "--in-process: runs one process; leave out --processes",
        None,
    ),
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_mistakes_exit_2_and_leave_nothing_that_runs(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    message, hint = REFUSED[arguments]
    done = call(monkeypatch, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == message
    assert hint is None or f"\nhint: {hint}" in done.stderr
    assert not list(Path().glob("**/step.json"))


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_mistakes_are_json_on_stdout_when_asked_for(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call(monkeypatch, *arguments, "--json")
    error = json.loads(done.stdout)["error"]
    first = error["problems"][0]
    assert error["exit_code"] == done.exit_code == 2
    assert (
        ": ".join(part for part in (first["where"], first["path"], first["message"]) if part) == REFUSED[arguments][0]
    )


@pytest.mark.parametrize(
    "arguments", [("plan",), ("plan", "--bogus"), ("bogus",), ("run", "r.yaml", "--processes", "0"), ("options",)]
)
def test_what_is_not_a_command_line_exits_2(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, *arguments).exit_code == 2


def test_the_plan_shows_every_edge_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    done = call(monkeypatch, "plan", "r.yaml")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith("runs/x · seed 42 · ")
    assert done.stderr.partition("\n\n")[2] == (
        "  tok   tokenizer  run  first time  a.txt → tok\n"
        "  base  pretrain   run  first time  a.txt, tok → base\n"
        "  chat  sft        run  first time  base, storyworld → chat\n"
        "\n"
        "        data file  read as  columns\n"
        "  tok   a.txt      text     text\n"
        "  base  a.txt      text     text\n"
        "\n"
        "        parameters  tokens  FLOPs   memory    disk  time\n"
        "  base       1.0 M                 ~1.0 GB  ~27 MB\n"
        "  chat       1.0 M                 ~1.0 GB  ~27 MB\n"
        "\n"
        "  how long it takes: llmpipe plan r.yaml --calibrate runs a few steps of each stage\n"
    )
    assert not Path("runs").exists()


def test_the_plan_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(call(monkeypatch, "plan", "r.yaml", "--json").stdout)
    assert (found["run"], found["seed"]) == ("runs/x", 42)
    step = found["steps"][1]
    assert step.pop("fingerprint")
    wanted = {"name": "base", "kind": "pretrain", "state": "to do", "action": "run", "reason": "first time"}
    assert {key: step[key] for key in wanted} == wanted
    assert step["inputs"] == ["a.txt", "tok"]


def test_a_dry_run_is_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = call(monkeypatch, "plan", "r.yaml").stderr
    assert call(monkeypatch, "run", "r.yaml", "--dry-run").stderr == wanted


def test_set_belongs_to_the_stage_in_a_stage_command(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--dry-run", "--json", "--set", "vocab_size=300")
    ours = json.loads(call(monkeypatch, "tokenizer", "r.yaml", *flags).stdout)["steps"][0]
    written = json.loads(call(monkeypatch, "plan", "r.yaml", "--json", "--set", "tok.vocab_size=300").stdout)["steps"][
        0
    ]
    assert ours["fingerprint"] == written["fingerprint"]
    assert [ours["action"], ours["name"]] == ["run", "tok"]


def finished(run_dir: Path, *names: str) -> None:
    """Write what finished stages leave behind, and the run's recipe."""
    run_dir.mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text(RECIPE.replace("a.txt", str(Path("a.txt").absolute())), encoding="utf-8")
    rest = {"metrics": {}, "gates": [], "versions": {}, "device": "", "started": "", "seconds": 61.0, "outputs": {}}
    for step in make_plan(load(run_dir / "recipe.yaml"), run_dir):
        if step.name in names:
            (run_dir / step.name).mkdir()
            record = step.record.model_dump(exclude={"schema_version"})
            artifact.write_json(run_dir / step.name / "step.json", step.record)
            artifact.write_json(run_dir / step.name / "manifest.json", artifact.Manifest(**record, **rest))


def test_force_in_a_stage_command_needs_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    finished(Path("runs/x"), "tok")
    steps = json.loads(call(monkeypatch, "tokenizer", "runs/x", "--force", "--dry-run", "--json").stdout)["steps"]
    assert (steps[0]["action"], steps[0]["reason"]) == ("rerun", "asked for with --force")


def test_a_run_directory_is_named_the_way_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    finished(Path("runs/x"), "tok")
    done = call(monkeypatch, "plan", "runs/x/recipe.yaml")
    assert done.stderr.startswith("runs/x · seed 42 · ")
    assert "  tok   tokenizer  skip  unchanged   a" not in done.stderr  # the input is an absolute path here
    assert "  tok   tokenizer  skip  unchanged" in done.stderr


def test_status_looks_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    finished(Path("runs/x"), "tok", "base")
    Path("runs/x/base/manifest.json").unlink()
    done = call(monkeypatch, "status", "runs/x")
    assert done.stdout == (
        "stage  kind       state     took\n"
        "tok    tokenizer  done      1:01\n"
        "base   pretrain   outdated        was not finished\n"
        "chat   sft        to do           first time\n"
    )
    assert not Path("runs/x/.lock").exists()
    found = json.loads(call(monkeypatch, "status", "runs/x", "--json").stdout)
    assert found["running"] is False
    assert [step["state"] for step in found["steps"]] == ["done", "outdated", "to do"]


def test_status_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    finished(Path("runs/x"), "tok", "base")
    base = Path("runs/x/base")
    (base / "manifest.json").unlink()
    (base / "log.txt").write_text("Traceback (most recent call last):\n  File x\nRuntimeError: odd\n", encoding="utf-8")
    (base / "checkpoints/checkpoint-4.bad-1").mkdir(parents=True)
    found = json.loads(call(monkeypatch, "status", "runs/x", "--why", "--json").stdout)
    why = {step["name"]: step["why"] for step in found["steps"]}
    assert why["tok"][0].startswith("settings, seed and inputs are those that it was made from (")
    assert why["base"] == [
        "was not finished",
        "checkpoint-4.bad-1 was found broken, and is not used",
        "its log ends with RuntimeError: odd",
    ]
    assert why["chat"] == ["first time", "waits for base"]
    assert "\n\nchat\n  first time\n  waits for base\n" in call(monkeypatch, "status", "runs/x", "--why").stdout


def test_a_look_at_a_folder_does_not_make_a_run_directory_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert call(monkeypatch, "status", ".").exit_code == 0
    assert call(monkeypatch, "plan", "recipe.yaml").stderr.startswith("runs/x · ")


def test_data_goes_to_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    done = call(monkeypatch, "schema")
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads(call(monkeypatch, "schema", "--json").stdout)
    rows = json.loads(call(monkeypatch, "options", "sft", "packing", "--json").stdout)
    assert {"key", "type", "default", "help"} == set(rows[0])
    written = call(monkeypatch, "init", "mine.yaml", "--json")
    assert json.loads(written.stdout) == {"written": "mine.yaml", "like": "quickstart", "beside": []}


def test_bad_data_in_a_stage_exits_5(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage runs here, in this process: the tokenizer's needs no torch."""
    Path("a.jsonl").write_text('{"text": "a"}\n{"text": "b\n', encoding="utf-8")
    Path("r.yaml").write_text("name: x\nstages:\n  tok: {kind: tokenizer, data: {path: a.jsonl}}\n", encoding="utf-8")
    done = call(monkeypatch, "run", "r.yaml", "--in-process", "--json")
    assert done.exit_code == 5
    error = json.loads(done.stdout)["error"]
    assert error["exit_code"] == 5
    assert error["problems"][0]["where"] == "a.jsonl:2"
