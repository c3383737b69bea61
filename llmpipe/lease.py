"""Who works in a run directory, for shared filesystems on which a lock holds nothing.

On Lustre, GPFS and some NFS `flock` succeeds for everyone (huggingface/huggingface_hub#4228). So whoever works says in
a file that it does, again and again; one that is silent is gone. The count of what it said decides, and no clock: those
of two machines differ.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmpipe import console
from llmpipe.artifact import read_json, write_json
from llmpipe.errors import LockedError, StageError

NAME = ".lease.json"
BEAT_S = 5.0
SILENT_BEATS = 3
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Work in a run directory, on no other terms than that nobody else does; one who has gone silent is replaced.

    Raises:
        LockedError: somebody on another machine works in it, or on this one where locks hold nothing.
    """
    path, over = run_dir / NAME, threading.Event()
    _refuse_alive(path)
    mine: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot(), "beat": 0}
    write_json(path, mine)

    def beat() -> None:
        while not over.wait(BEAT_S):
            mine["beat"] += 1
            with contextlib.suppress(StageError):  # a full disk is for the work itself to notice
                write_json(path, mine)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        path.unlink(missing_ok=True)


def _refuse_alive(path: Path) -> None:
    found = read_json(path)
    if not isinstance(found, dict) or _is_gone(found):
        return
    who = f"process {found.get('pid')} on {found.get('host')}"
    console.say(f"{path.parent} was left by {who}; looking whether it still works", style="yellow")
    for _ in range(SILENT_BEATS * 10):
        time.sleep(BEAT_S / 10)
        now = read_json(path)
        if now is None:
            return  # it has just ended
        if now != found:
            raise LockedError(
                f"{path.parent} is in use by another llmpipe ({who})",
                hint="wait for it, or give this run a folder: --run DIR",
            )


def _is_gone(found: dict[str, Any]) -> bool:
    """Tell a holder that was of this machine and is no more, or that is this process itself."""
    if (found.get("host"), found.get("boot")) != (socket.gethostname(), _boot()):
        return found.get("host") == socket.gethostname()  # the machine was started anew since
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, KeyError, ValueError, TypeError):
        return False
    return int(found["pid"]) == os.getpid()


def _boot() -> str | None:
    return BOOT_ID.read_text(encoding="utf-8").strip() if BOOT_ID.is_file() else None
