"""What models and files say reaches a terminal without its escapes: no window is named, nothing copied or hidden."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmpipe
from llmpipe import changes, console, generate, logs
from llmpipe.errors import DataError, Problem

HOSTILE = (
    "a\x1b[2Jb\x1b]0;owned\x07c\x1b]52;c;ZWNobw==\x07d\x1b]8;;http://evil\x1b\\e\x1bPq\x1b\\f"
    "\x9b31mg\x9d0;x\x9ch\x08\x08i\x7fj\rk\u202el\u2066m\x00n\x85o[bold]p[/]q"
)
"""Clears the screen, names the window, fills the clipboard, links; by 8-bit escapes, too; and turns text around."""


@pytest.fixture(autouse=True)
def harmless(capsys: pytest.CaptureFixture[str]) -> Any:
    yield
    said = "".join(capsys.readouterr())
    assert "a" in said and "q" in said, "nothing was shown"
    assert not {char for char in said if not char.isprintable()} - {"\n"}, repr(said)


class _Told:
    text, finished = HOSTILE, True


SHOWN: dict[str, Callable[[], None]] = {
    "say": lambda: console.say(HOSTILE),
    "data": lambda: console.data(HOSTILE),
    "json": lambda: console.as_json({"text": HOSTILE.replace("\u202e", "").replace("\u2066", "")}),
    "error": lambda: console.error(
        DataError(Problem(HOSTILE, HOSTILE, HOSTILE, excerpt=(HOSTILE, HOSTILE)), hint=HOSTILE)
    ),
    "table": lambda: console.show(console.table([(HOSTILE, HOSTILE)]), to_stdout=True),
    "note": lambda: console.Live("x").note(HOSTILE),
    "generate": lambda: generate.show(HOSTILE, [_Told()], as_json=False, is_alone=False),  # type: ignore[list-item]
    "diff": lambda: console.data(str(changes.Change("key", HOSTILE, HOSTILE))),
}


@pytest.mark.parametrize("name", SHOWN)
def test_nothing_of_it_reaches_the_terminal(name: str) -> None:
    SHOWN[name]()


@pytest.mark.parametrize("raw", [False, True])
def test_logs_are_cleaned(raw: bool, tmp_path: Path) -> None:
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa" / "step.json").write_text("{}", encoding="utf-8")
    (tmp_path / "qa" / "log.txt").write_text(HOSTILE + "\n", encoding="utf-8", newline="")
    line = json.dumps({"step": 1, "loss": HOSTILE, "time_s": 1})
    (tmp_path / "qa" / "metrics.jsonl").write_text(line + "\n", encoding="utf-8")
    logs.show(tmp_path, "qa", follow=False, raw=raw, as_json=False)


def test_nothing_goes_around_the_console() -> None:
    console.say("aq")
    own = {"console.py", "cli.py", "worker.py", "repl.py", "memory_shown.py", "terminal.py", "generate.py"}
    for path in Path(llmpipe.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name in own or not ("print(" in text or "sys.std" in text):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                written = ast.unparse(node.func)
                assert written not in ("print", "sys.stdout.write", "sys.stderr.write"), f"{path}:{node.lineno}"
