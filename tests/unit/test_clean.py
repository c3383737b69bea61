"""`llmpipe clean`: frees what it says, and leaves what anybody may still need."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmpipe import artifact
from llmpipe.artifact import Input
from llmpipe.clean import clean
from llmpipe.errors import LockedError, UsageError
from tests.unit.made import Made, make_run

GGUF = Input(field="model", source={"gguf": "/m/small.gguf"}, identity="", files={"/m/small.gguf": "ab" * 32})
FLAGS = {"yes": True, "dry_run": False, "as_json": True}
GOES = {".history/base-1234/model/x", "base/checkpoints/checkpoint-1/x", ".bases/other-ffffffffffff/x"}
STAYS = {"base/model/x", "chat/checkpoints/checkpoint-1/x", f".bases/small-{'ab' * 6}/x", "report/x.svg"}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    made = make_run(tmp_path / "x", [Made("base", inputs=[GGUF]), Made("chat", done=False)])
    for name in GOES | STAYS:
        path = made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    (made / "chat" / "manifest.json").write_text("{", encoding="utf-8")  # cut off: the stage is not done
    return made


def there(run_dir: Path) -> set[str]:
    return {name for name in GOES | STAYS if (run_dir / name).exists()}


def test_what_goes_and_what_stays(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean(run_dir, **FLAGS)
    assert there(run_dir) == STAYS
    told = json.loads(capsys.readouterr().out)
    assert (told["deleted"], told["bytes"]) == (True, 15)
    assert [folder["why"] for folder in told["folders"]] == [
        "replaced by a later run",
        "base is done",
        "no stage begins from it",
    ]
    clean(run_dir, **FLAGS)
    told = json.loads(capsys.readouterr().out)
    assert (told["deleted"], told["bytes"], told["folders"]) == (False, 0, [])


def test_a_dry_run_only_tells(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean(run_dir, **FLAGS | {"dry_run": True})
    told = json.loads(capsys.readouterr().out)
    assert (told["deleted"], told["bytes"]) == (False, 15)
    assert there(run_dir) == GOES | STAYS
    assert not (run_dir / ".lock").exists()


def test_a_file_with_two_names_is_counted_once(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.link(run_dir / ".history/base-1234/model/x", run_dir / ".history/base-1234/model/y")
    clean(run_dir, **FLAGS)
    assert json.loads(capsys.readouterr().out)["bytes"] == 15


def test_what_is_a_link_stays(run_dir: Path, tmp_path: Path) -> None:
    elsewhere = (run_dir / "base" / "checkpoints").rename(tmp_path / "big-disk")
    (run_dir / "base" / "checkpoints").symlink_to(elsewhere)
    clean(run_dir, **FLAGS)
    assert (elsewhere / "checkpoint-1" / "x").exists()


@pytest.mark.parametrize("name", [".lock", ".worker.lock"])
def test_nothing_goes_while_somebody_works_there(run_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take = artifact.lock  # without the ten seconds that a worker is given
    holder = take(run_dir, name)
    monkeypatch.setattr(artifact, "lock", lambda folder, name=".lock", **_: take(folder, name))
    try:
        with pytest.raises(LockedError):
            clean(run_dir, **FLAGS)
    finally:
        holder.release()
    assert there(run_dir) == GOES | STAYS


def test_without_a_terminal_there_is_nobody_to_ask(run_dir: Path) -> None:
    with pytest.raises(UsageError, match="there is no terminal to ask on") as refused:
        clean(run_dir, **FLAGS | {"yes": False})
    assert refused.value.hint == f"llmpipe clean {run_dir} --dry-run, then --yes"
    assert there(run_dir) == GOES | STAYS


@pytest.mark.parametrize("answer", ["y", "n"])
def test_it_asks(run_dir: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda text, err: asked.append(text) or answer == "y")
    clean(run_dir, **FLAGS | {"yes": False})
    assert asked == ["  delete 3 folders, 15B?"]
    assert there(run_dir) == (STAYS if answer == "y" else GOES | STAYS)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no run directory: it has no recipe.yaml"):
        clean(tmp_path, **FLAGS)
