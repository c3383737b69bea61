"""`llmpipe memory`: what it shows, what it deletes and when it asks."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from llmpipe import memory_commands
from llmpipe.talk import memory_shown
from llmpipe.talk.memory import Memory, default_path

APP = typer.Typer()  # without the other commands, which take Typer longer than the test
memory_commands.add_to(APP)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two conversations and two facts."""
    monkeypatch.setenv("LLMPIPE_HOME", str(tmp_path))
    with Memory(default_path()) as memory:
        for said in ("My cat is called \x1b[31mMiso.", "Is it sunny?"):
            talk = memory.begin("runs/x")
            memory.add(talk, {"role": "user", "content": said})
            memory.add(talk, {"role": "assistant", "content": "I see."})
        memory.remember("The cat sleeps.")
        memory.remember("Answers in French.")
    return tmp_path


def ran(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(APP, ["memory", *words])
    return done.exit_code, done.stdout, done.stderr


def told(*words: str) -> Any:
    code, out, _ = ran(*words, "--json")
    assert code == 0
    return json.loads(out)


def kept() -> tuple[list[int], list[int]]:
    with Memory(default_path()) as memory:
        return [one.id for one in memory.conversations()], [fact.id for fact in memory.facts()]


def test_list() -> None:
    code, out, err = ran("list")
    assert (code, err, [line.split()[0] for line in out.splitlines()]) == (0, "", ["id", "2", "1"])
    assert out.splitlines()[1].endswith("      1  runs/x  Is it sunny?")
    assert [one["title"] for one in told("list", "--limit", "1")["conversations"]] == ["Is it sunny?"]


def test_show_drops_what_a_terminal_would_obey() -> None:
    code, out, err = ran("show", "1")
    assert (code, out) == (0, "\nuser: My cat is called [31mMiso.\n\nassistant: I see.\n")
    assert "runs/x" in err
    assert [one["role"] for one in told("show", "1")["messages"]] == ["user", "assistant"]
    assert ran("show", "7") == (
        1, "", "there is no conversation 7\n\nhint: llmpipe memory list shows those there are\n",
    )  # fmt: skip


def test_search() -> None:
    code, out, _ = ran("search", "where is my", "cat?")
    assert code == 0
    assert [line.split("  ")[1] for line in out.splitlines()][:2] == ["fact 1", "conversation 1"]
    found = told("search", "cat")
    assert [[one["id"] for one in found[key]] for key in ("messages", "facts")] == [[1], [1]]
    assert ran("search", "dinosaur") == (0, "", "nothing was found\n")


def test_facts_and_forget() -> None:
    assert [fact["text"] for fact in told("facts")["facts"]] == ["The cat sleeps.", "Answers in French."]
    assert ran("forget", "1") == (0, "", "1 fact forgotten\n")
    assert ran("forget", "1") == (1, "", "there is no fact 1\n\nhint: llmpipe memory facts shows those there are\n")
    assert kept()[1] == [2]
    assert told("forget", "--all", "--yes") == {"forgotten": 1}
    assert ran("facts") == (0, "", "no fact is kept; in a chat, /memory remember TEXT keeps one\n")


def test_delete() -> None:
    assert ran("delete", "1", "--yes") == (0, "", "1 conversation deleted\n")
    assert kept() == ([2], [1, 2])
    assert told("delete", "--all", "--yes") == {"deleted": 1}
    assert kept() == ([], [1, 2])
    assert ran("list") == (0, "", f"no conversation is kept in {default_path()}\n")


@pytest.mark.parametrize("words", [("delete", "1"), ("delete", "--all"), ("forget", "--all")])
def test_without_a_terminal_there_is_nobody_to_ask(words: tuple[str, ...]) -> None:
    hint = f"hint: llmpipe memory {' '.join(words)} --yes\n"
    assert ran(*words) == (2, "", f"there is no terminal to ask on\n\n{hint}")
    assert kept() == ([2, 1], [1, 2])


@pytest.mark.parametrize("answer", [True, False])
def test_it_asks(answer: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda text, err: asked.append(text) or answer)
    memory_shown.delete(2, every=False, yes=False, as_json=False)
    memory_shown.forget(None, every=True, yes=False, as_json=True)
    assert asked == ["  delete conversation 2, 'Is it sunny?' of 1 turns?", "  forget all 2 facts?"]
    assert kept() == (([1], []) if answer else ([2, 1], [1, 2]))
    assert json.loads(capsys.readouterr().out) == {"forgotten": 2 if answer else 0}


@pytest.mark.parametrize(
    ("words", "what"), [(["delete"], "conversation"), (["delete", "1", "--all"], "conversation"), (["forget"], "fact")]
)
def test_one_or_all(words: list[str], what: str) -> None:
    assert ran(*words) == (2, "", f"name one {what}, or --all\n\nhint: llmpipe memory {words[0]} 1\n")


def test_export(home: Path) -> None:
    file = home / "kept.jsonl"
    assert told("export", str(file)) == {"file": str(file), "lines": 4}
    text = file.read_text(encoding="utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [next(iter(json.loads(line))) for line in text.splitlines()] == ["fact", "fact", "id", "id"]
    assert ran("export", "-") == (0, text, "")
    assert ran("export", str(file)) == (
        2, "", f"{file} is there already\n\nhint: name another file, or - for stdout\n",
    )  # fmt: skip
    missing = home / "none" / "kept.jsonl"
    assert ran("export", str(missing))[2].startswith(f"cannot write {missing}: No such file or directory")


def test_a_broken_memory_says_so() -> None:
    default_path().write_bytes(b"broken " * 1000)
    code, out, err = ran("list", "--json")
    assert (code, json.loads(out)["error"]["exit_code"]) == (5, 5)
    assert err.startswith(f"{default_path()} is broken: file is not a database\n")
