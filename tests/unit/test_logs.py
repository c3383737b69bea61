"""`llmpipe logs`: lines to read, and on to the end of a stage that runs."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from llmpipe import artifact, logs
from llmpipe.errors import UsageError
from tests.unit.made import Made, make_run

LINE = {
    "step": 2,
    "max_steps": 8,
    "loss": 0.25,
    "learning_rate": 3e-4,
    "tokens_per_s": 1900.0,
    "epoch": 1,
    "time_s": 61.0,
}
TOLD = "    1:01  step 2/8  loss 0.25  learning rate 3.00e-04  1.9k tok/s"
FLAGS = {"follow": False, "raw": False, "as_json": False}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    made = make_run(tmp_path / "x", [Made("tok", "tokenizer"), Made("base", logged=[LINE], done=False)])
    (made / "base" / "log.txt").write_text("a warning \x1b[31mred\n", encoding="utf-8")
    return made


def test_lines_to_read(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run_dir / "base" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "los')  # its writer is not through with it
    logs.show(run_dir, None, **FLAGS)
    assert capsys.readouterr().out == f"base  {TOLD}\n"


def test_what_the_libraries_printed(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.show(run_dir, "base", **FLAGS | {"raw": True})
    assert capsys.readouterr().out == "a warning [31mred\n"


def test_json(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.show(run_dir, None, **FLAGS | {"as_json": True})
    assert json.loads(capsys.readouterr().out) == {"run": str(run_dir), "stages": {"tok": [], "base": [LINE]}}


def test_follow_goes_on_until_the_stage_is_done(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.01)
    path = run_dir / "base" / "metrics.jsonl"

    def work(_seconds: float) -> None:
        """What the stage does while the reader sleeps: three more lines, one of them in two parts; then the end."""
        step = written[0] = written[0] + 1
        text = json.dumps({"step": step, "time_s": 0}) + "\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(text[:5] if step == 3 else text)
        if step == 3:
            with path.open("a", encoding="utf-8") as file:
                file.write(text[5:])
        if step == 5:
            (run_dir / "base" / "manifest.json").write_text("{}", encoding="utf-8")

    written = [2]
    monkeypatch.setattr(logs.time, "sleep", work)
    holder = artifact.lock(run_dir)
    try:
        logs.show(run_dir, "base", **FLAGS | {"follow": True})
    finally:
        holder.release()
    steps = [line.split("step ")[1].split("/")[0] for line in capsys.readouterr().out.splitlines()]
    assert steps == ["2", "3", "4", "5"]


def test_follow_begins_again_with_a_stage_that_does(run_dir: Path) -> None:
    tail = logs._Tail(run_dir / "base" / "metrics.jsonl")
    assert len(list(tail.lines())) == 1
    artifact.write_text(tail.path, '{"step": 1}\n')
    assert list(tail.lines()) == ['{"step": 1}']
    assert list(tail.lines()) == []


def test_follow_ends_at_once_where_nothing_runs(run_dir: Path) -> None:
    done = threading.Thread(target=lambda: logs.show(run_dir, None, **FLAGS | {"follow": True}), daemon=True)
    done.start()
    done.join(5)
    assert not done.is_alive()
    assert not (run_dir / ".lock").exists()  # a look leaves none behind


@pytest.mark.parametrize(
    ("stage", "flags", "message", "hint"),
    [
        ("bse", {}, "no stage 'bse' was begun in RUN, did you mean base?", "stages: tok, base"),
        (None, {"raw": True}, "--raw shows the log.txt of one stage", "llmpipe logs RUN base --raw"),
        (
            "base",
            {"raw": True, "as_json": True},
            "--json prints one document, and goes with neither --follow nor --raw",
            None,
        ),
    ],
)
def test_mistakes(run_dir: Path, stage: str | None, flags: dict[str, bool], message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as refused:
        logs.show(run_dir, stage, **FLAGS | flags)
    assert str(refused.value) == message.replace("RUN", str(run_dir))
    assert refused.value.hint == (hint and hint.replace("RUN", str(run_dir)))


def test_a_folder_in_which_nothing_was_begun(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing was begun in"):
        logs.show(tmp_path, None, **FLAGS)
