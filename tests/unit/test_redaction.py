"""Secrets of the environment are in nothing that a run leaves behind, a crash included."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmpipe import redaction, stages, worker
from llmpipe.artifact import StepRecord, write_json

KEY = "hf_" + "aB3dE5gH" * 5
PASSWORD = "correct-horse"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", PASSWORD)
    monkeypatch.setenv("SHORT_TOKEN", "word")
    monkeypatch.setenv("HOME_OF_KEYS", "plain-value")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"401 for {KEY} at", "401 for [redacted] at"),
        (f"x={PASSWORD};", "x=[redacted];"),
        ("GET https://me:pass@host/a?b", "GET https://[redacted]@host/a?b"),
        ("a word, plain-value", "a word, plain-value"),
        ("http://host:8000/v1@2", "http://host:8000/v1@2"),
        ("hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ],
)
def test_what_is_blotted_out(text: str, wanted: str) -> None:
    assert redaction.redacted(text) == wanted


def test_a_log_loses_its_secrets_and_keeps_the_rest(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(f"one\r\n{PASSWORD} \xff {KEY}\n".encode("latin-1"))
    redaction.redact_file(log)
    assert log.read_bytes() == b"one\r\n[redacted] \xff [redacted]\n"
    inode = log.stat().st_ino
    redaction.redact_file(log)
    assert log.stat().st_ino == inode and [path.name for path in tmp_path.iterdir()] == ["log.txt"]
    redaction.redact_file(tmp_path / "missing")


def test_a_crash_tells_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(settings: Any, ctx: Any) -> None:
        raise RuntimeError(f"cannot log in with {KEY} and {PASSWORD}")

    module = SimpleNamespace(Settings=SimpleNamespace(model_validate=lambda _: None), run=run)
    monkeypatch.setattr(stages, "load", lambda _: module)
    record = StepRecord(name="x", kind="sft", stage_version=1, fingerprint="f", seed=1, settings={}, inputs=[])
    (tmp_path / "x").mkdir()
    write_json(tmp_path / "x" / "step.json", record)
    events: list[Any] = []
    assert worker.run_reporting(tmp_path, "x", emit=events.append, stop=lambda: None) == 1
    said = capsys.readouterr().err + str(events[0]["failure"])
    assert said.count("cannot log in with [redacted] and [redacted]") == 2
    assert KEY not in said and PASSWORD not in said


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), type("OutOfMemoryError", (RuntimeError,), {})("no room\nmore")]
)
def test_memory_that_runs_out_is_said_plainly(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(settings: Any, ctx: Any) -> None:
        raise error

    module = SimpleNamespace(Settings=SimpleNamespace(model_validate=lambda _: None), run=run)
    monkeypatch.setattr(stages, "load", lambda _: module)
    record = StepRecord(name="x", kind="sft", stage_version=1, fingerprint="f", seed=1, settings={}, inputs=[])
    (tmp_path / "x").mkdir()
    write_json(tmp_path / "x" / "step.json", record)
    events: list[Any] = []
    worker.run_reporting(tmp_path, "x", emit=events.append, stop=lambda: None)
    failure = events[0]["failure"]
    assert (str(failure), failure.hint) == ("memory ran out: no room", worker.LESS_MEMORY)
