"""Where a step's process comes from: forked from a warm server, torchrun, or nowhere (`--in-process`).

torch and the trainers take seconds to import. A fork server imports them once and every step of a run is forked from
it, so a stage starts in a fraction of a second and its memory is freed when it ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from llmpipe import worker
from llmpipe.errors import StageError

ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL 1.16 reports every trainer to the hub unless this is set before its import
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "true",  # set, so that tokenizers does not warn when a process that used it forks
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
TORCHRUN_SHUTDOWN_S = 120  # the default of 30 s kills ranks that are still writing a checkpoint


@dataclass
class Worker:
    """A running step: its end of the event pipe, and the process behind it."""

    events: Connection
    process: BaseProcess | subprocess.Popen[bytes]

    def ask_to_stop(self, how: worker.Stop | Literal["kill"]) -> None:
        """Ask the worker to finish its step, save and end; `kill` leaves out all but the end."""
        with contextlib.suppress(OSError):  # it has just ended by itself
            self.events.send(how)

    def kill(self) -> None:
        """End the worker at once; complete checkpoints stay valid."""
        if isinstance(self.process, subprocess.Popen):
            self.ask_to_stop("kill")  # ranks lead sessions of their own, and torchrun ends the others when one ends
        else:
            self.process.kill()

    def wait(self) -> int:
        """Wait for the end and return the exit code, negative for a signal."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.wait()
        self.process.join()
        return self.process.exitcode or 0


def set_environment() -> None:
    """Set what the libraries read at import; values that the user has set win."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def _context() -> BaseContext:
    """Fork server on Linux; macOS and Windows cannot fork safely and spawn."""
    method = "forkserver" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["llmpipe.training.preload"])
    return context


def warm_up() -> None:
    """Start importing torch in the background while the plan is shown."""
    set_environment()
    if sys.platform == "linux":
        _context()
        from multiprocessing.forkserver import ensure_running

        with _signals_ignored():
            ensure_running()


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    """Start a process that neither a Ctrl-C at the terminal ends nor Slurm's SIGUSR1; both are the runner's."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    names = [name for name in ("SIGINT", "SIGUSR1") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), signal.SIG_IGN) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def start(run_dir: Path, name: str, *, processes: int) -> Worker:
    """Start a step in a process of its own, or in `processes` of them under torchrun."""
    set_environment()
    return _start_torchrun(run_dir, name, processes) if processes > 1 else _start_forked(run_dir, name)


def _start_forked(run_dir: Path, name: str) -> Worker:
    context = _context()
    ours, theirs = context.Pipe(duplex=True)
    process = context.Process(target=worker.serve, args=(theirs, run_dir, name), name=f"llmpipe {name}")  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    return Worker(ours, process)


def _start_torchrun(run_dir: Path, name: str, processes: int) -> Worker:
    """Run the same worker under torchrun; rank 0 connects back to us."""
    key = secrets.token_bytes(16)
    family = "AF_UNIX" if hasattr(os, "fork") else "AF_INET"
    address = tempfile.mktemp(prefix="llmpipe-") if family == "AF_UNIX" else ("127.0.0.1", 0)
    with Listener(address, family=family, authkey=key) as listener:
        environment = {**os.environ, "LLMPIPE_EVENTS": str(listener.address), "LLMPIPE_KEY": key.hex()}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += [f"--shutdown-timeout={TORCHRUN_SHUTDOWN_S}", "-m", "llmpipe.worker", str(run_dir), name]
        with (run_dir / name / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return Worker(_accept(listener, process, run_dir / name / "log.txt"), process)


def _accept(listener: Listener, process: subprocess.Popen[bytes], log: Path) -> Connection:
    """Wait for rank 0 to connect, or for torchrun to fail before that."""
    connected: list[Connection] = []
    waiting = threading.Thread(target=lambda: connected.append(listener.accept()), daemon=True)
    waiting.start()
    while waiting.is_alive():
        waiting.join(timeout=0.2)
        if process.poll() is not None and not connected:
            raise StageError("torchrun ended before its first worker started", hint=f"see {log}")
    return connected[0]
