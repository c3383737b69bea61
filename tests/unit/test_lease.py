"""A lease on a run directory, for filesystems on which everyone gets the lock."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llmpipe import lease, runner
from llmpipe.artifact import write_json
from llmpipe.errors import LockedError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.05)


def left(run_dir: Path, **facts: Any) -> Path:
    """Leave a lease behind, as one who was killed does."""
    path = run_dir / lease.NAME
    mine = {"pid": os.getppid(), "host": socket.gethostname(), "boot": lease._boot(), "beat": 7}
    write_json(path, mine | facts)
    return path


def test_who_works_says_so_again_and_again(tmp_path: Path) -> None:
    with runner.locked(tmp_path):
        first = json.loads((tmp_path / lease.NAME).read_text(encoding="utf-8"))
        assert (first["pid"], first["host"]) == (os.getpid(), socket.gethostname())
        deadline = time.monotonic() + 20
        while json.loads((tmp_path / lease.NAME).read_text(encoding="utf-8"))["beat"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert not (tmp_path / lease.NAME).exists()


def test_one_on_another_machine_that_works_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 1)
    path, over = left(tmp_path, host="elsewhere", pid=77), threading.Event()

    def work() -> None:
        beat = 7
        while not over.wait(0.03):
            beat += 1
            left(tmp_path, host="elsewhere", pid=77, beat=beat)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with pytest.raises(LockedError) as caught, runner.locked(tmp_path):
            pass
    finally:
        over.set()
        thread.join()
    assert str(caught.value) == f"{tmp_path} is in use by another llmpipe (process 77 on elsewhere)"
    assert path.exists()


@pytest.mark.parametrize("facts", [{"host": "elsewhere"}, {}], ids=["another machine", "a process of that number"])
def test_one_that_is_silent_is_replaced(facts: dict[str, Any], tmp_path: Path) -> None:
    left(tmp_path, **facts)
    with runner.locked(tmp_path):
        assert json.loads((tmp_path / lease.NAME).read_text(encoding="utf-8"))["pid"] == os.getpid()


def test_one_that_is_known_to_be_gone_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 1000)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for facts in ({"pid": ended.pid}, {"boot": "before"}, {"pid": os.getpid()}):
        left(tmp_path, **facts)
        with runner.locked(tmp_path):
            pass
    (tmp_path / lease.NAME).write_text("cut o", encoding="utf-8")
    with runner.locked(tmp_path):
        pass
