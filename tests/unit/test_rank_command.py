"""`llmpipe rank` as it is typed: several values for one option, a pipe for a terminal, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmpipe.cli import app
from llmpipe.ranking import start
from llmpipe.ranking.records import Answer
from llmpipe.ranking.sampling import Round
from llmpipe.ranking.store import Store
from llmpipe.talk.engine import Sampling
from tests.unit.rounds import MODELS, asked


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A round of two prompts, all of it sampled."""
    found = Round([asked("one"), asked("two")], MODELS, 2, 1, Sampling())
    with Store(tmp_path / "mine.sqlite3") as store:
        told = {"criteria": ["quality"], "guidelines": {"quality": "Which is better?"}}
        round_id = store.begin_round(found.key, found.settings() | told)
        for place, prompt in enumerate(found.prompts):
            given = [Answer(f"{place}.{n}", (model,)) for n, model in enumerate(MODELS)]
            store.add_task("rank", prompt, given, round_id=round_id, place=place)
    return tmp_path / "mine.sqlite3"


def llmpipe(*arguments: Any, input: str | None = None) -> Any:
    return CliRunner().invoke(app, ["rank", *map(str, arguments)], input=input)


def test_several_values_follow_one_option(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(start, "rank", lambda store, wanted, name: seen.append((wanted, name)))
    line = "--prompts P --models chat ppo --n 3 --criteria helpfulness safety --annotator ann --seed 5"
    done = llmpipe(file, *line.split())
    assert done.exit_code == 0, done.output
    ((wanted, name),) = seen
    assert (wanted.models, wanted.criteria, wanted.count) == (["chat", "ppo"], ["helpfulness", "safety"], 3)
    assert (wanted.prompts, wanted.seed, name) == ("P", 5, "ann")


def test_a_round_goes_on_through_a_pipe_is_shown_and_exported(file: Path, tmp_path: Path) -> None:
    done = llmpipe(file, input="21\n")
    assert done.exit_code == 0 and "2 of 2 · quality" in done.output and "Which is better?" in done.output
    assert not any(model in done.output for model in MODELS)  # nobody who ranks learns of them
    for name in ("me", "ann"):
        assert "all is ranked" in llmpipe(file, "--annotator", name, input="1=2\nb\n").output
    shown = json.loads(llmpipe(file, "--show", "--json").stdout)
    assert [(one["name"], one["ranked"]) for one in shown["annotators"]] == [("ann", 2), ("me", 2)]
    (criterion,) = shown["criteria"]
    assert criterion["name"] == "quality" and sorted(criterion["wins"]) == sorted(MODELS)
    table = llmpipe(file, "--show").output
    assert "alpha" in table and MODELS[0] in table
    done = llmpipe(file, "--export", tmp_path / "rows.jsonl", "--as", "pairs")
    assert done.exit_code == 0, done.output
    assert "1 pairs of which one is better; of no use here: 2 ties, 1 rankings that found all bad" in done.output
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (row["annotator"], row["criterion"]) == ("me", "quality")
    told = json.loads(llmpipe(file, "--export", tmp_path / "kto.jsonl", "--as", "kto", "--json").stdout)
    assert told["rows"] == 2


@pytest.mark.parametrize(
    ("arguments", "wrong", "hint"),
    [
        (["--least-gold", ".8"], "--as and --least-gold say what to export", "--export pairs.jsonl"),
        (["--annotator", "a", "b"], "one person ranks at a terminal; several do on the page", "--page"),
        (["--page", "--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines reach the server", "or add --expose"),
    ],
)
def test_what_is_refused(file: Path, arguments: list[str], wrong: str, hint: str) -> None:
    done = llmpipe(file, *arguments)
    assert done.exit_code == 2 and wrong in done.output and hint in " ".join(done.output.split())


def test_what_is_no_run(tmp_path: Path) -> None:
    done = llmpipe(tmp_path / "nowhere")
    assert done.exit_code == 2 and "nowhere is no run directory" in done.output.replace("\n", "")
    assert not (tmp_path / "nowhere").exists()
