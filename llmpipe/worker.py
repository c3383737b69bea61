"""Runs one prepared step: in a process forked from a warm server, under torchrun, or in the caller's own.

`python -m llmpipe.worker RUN_DIR STAGE` runs a step whose step.json was written; a runner that wants to hear of it
puts its address in LLMPIPE_EVENTS.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, Literal

from llmpipe import gates, stages
from llmpipe.artifact import (
    Manifest,
    cannot_write,
    is_out_of_room,
    lock,
    output_hashes,
    read_step,
    sha256_of,
    write_json,
)
from llmpipe.context import Context, Event, Result
from llmpipe.data import bad_rows
from llmpipe.errors import ExitCode, LlmpipeError, Problem, StageError
from llmpipe.redaction import redacted

VERSIONED = ("llmpipe", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers")
Stop = Literal["interrupt", "terminate"]
LESS_MEMORY = (
    "halve micro_batch_tokens, or trainer.per_device_train_batch_size and double trainer.gradient_accumulation_steps: "
    "the batch stays the same"
)


def execute(run_dir: Path, name: str, *, emit: Callable[[Event], None], stop: Callable[[], Stop | None]) -> None:
    """Run a step and commit it: outputs first, manifest.json last.

    Raises:
        LlmpipeError: whatever the user can act on; other exceptions are bugs.
    """
    step = read_step(run_dir / name)
    if step is None:
        raise StageError(f"{run_dir / name / 'step.json'} is missing", hint="start stages with llmpipe run")
    rank = int(os.environ.get("RANK", "0"))
    ctx = Context(run_dir=run_dir, step=step, emit=emit, stop_requested=stop, rank=rank)
    module = stages.load(step.kind)
    settings = module.Settings.model_validate(step.settings)
    holder = lock(run_dir, ".worker.lock", wait_s=10) if rank == 0 else None
    begun, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    try:
        result = module.run(settings, ctx)
        if rank == 0:
            seconds = round(time.monotonic() - begun, 2)
            checked = {"gates_seconds": round(ctx.gates_s, 3)} if result.gates else {}
            metrics = result.metrics | bad_rows.metrics(ctx.dir) | checked | peak_memory()
            result = replace(result, metrics=metrics)
            _commit(ctx, result, started=started, seconds=seconds)
            emit({"event": "done", "metrics": result.metrics, "seconds": seconds})
    except LlmpipeError:
        raise
    except Exception as error:
        if is_out_of_room(error):
            raise cannot_write(error, ctx.dir) from error
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's; it may not be here
            raise StageError(f"memory ran out: {error}".splitlines()[0], hint=LESS_MEMORY) from error
        raise
    finally:
        if holder is not None:
            holder.release()


def _commit(ctx: Context, result: Result, *, started: str, seconds: float) -> None:
    """Check the gates and that no input changed meanwhile; then write the manifest."""
    failed = [gate for gate in result.gates if not gate.passed]
    if failed and not ctx.is_rehearsal:  # of a model that was hardly trained
        raise gates.failure(failed)
    for entry in ctx.step.inputs:
        for file, digest in entry.files.items():
            if not Path(file).is_file() or sha256_of(Path(file)) != digest:
                raise StageError(Problem("changed while the stage was reading it", where=file), hint="run it again")
    manifest = Manifest(
        **ctx.step.model_dump(exclude={"schema_version"}),
        outputs=output_hashes(ctx.dir, result.outputs),
        metrics=result.metrics,
        gates=result.gates,
        versions={"python": platform.python_version(), **{name: version(name) for name in VERSIONED}},
        device=_device(),
        started=started,
        seconds=seconds,
    )
    write_json(ctx.dir / "manifest.json", manifest)


def peak_memory() -> dict[str, float]:
    """Return the most memory that this process had, in MB of 2**20 bytes, the libraries' included.

    Where processes of its own had more, the largest of them counts. `peak_gpu_memory_mb` is what torch allocated.
    """
    found: dict[str, float] = {}
    if sys.platform != "win32":
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        found["peak_memory_mb"] = round(max(peaks) / unit, 1)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return found


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is None:
        return f"cpu, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return f"cpu, {torch.get_num_threads()} threads"


def serve(events: Connection, run_dir: Path, name: str) -> None:
    """Run a step in this process and report to a runner; the end of the runner's pipe ends this process.

    The worker leads its own session, so that Ctrl-C reaches the runner alone, which then asks for a stop once.
    """
    if hasattr(os, "setsid") and os.getpid() != os.getsid(0):
        os.setsid()
    stop_asked: list[Stop] = []
    listen_to_signals(stop_asked)
    threading.Thread(target=_listen, args=(events, stop_asked), daemon=True).start()
    _redirect_output(run_dir / name / "log.txt")
    _keep_progress_bars_here()
    sending = threading.Lock()

    def emit(event: Event) -> None:
        with sending:
            events.send(event)

    code = run_reporting(run_dir, name, emit=emit, stop=lambda: stop_asked[-1] if stop_asked else None)
    events.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips the slow teardown of torch; all files are closed and synced by now


def listen_to_signals(stop_asked: list[Stop]) -> None:
    """Take signals as a request to stop after the step; Slurm sends SIGUSR1 to every process of a job."""
    signal.signal(signal.SIGINT, lambda *_: stop_asked.append("interrupt"))
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: stop_asked.append("terminate"))


def run_reporting(run_dir: Path, name: str, *, emit: Callable[[Event], None], stop: Callable[[], Stop | None]) -> int:
    """Run a step, turn its failure into an event, and return the exit code."""
    try:
        execute(run_dir, name, emit=emit, stop=stop)
    except LlmpipeError as failure:
        emit({"event": "error", "failure": failure})
        return int(failure.code)
    except Exception as bug:
        sys.stderr.write(redacted(traceback.format_exc()))
        last = traceback.extract_tb(bug.__traceback__)[-1]
        message = redacted(f"{type(bug).__name__}: {bug} ({Path(last.filename).name}:{last.lineno})")
        hint = f"the whole traceback is in {run_dir / name / 'log.txt'}"
        emit({"event": "error", "failure": StageError(message, hint=hint)})
        return int(ExitCode.FAILED)
    return int(ExitCode.DONE)


def _listen(events: Connection, stop_asked: list[Stop]) -> None:
    """Wait for the runner's word to stop; without a runner there is nobody to work for."""
    try:
        while True:
            how = events.recv()
            if how == "kill":
                os._exit(int(ExitCode.INTERRUPTED))
            stop_asked.append(how)
    except (EOFError, OSError):
        os._exit(int(ExitCode.FAILED))


def _redirect_output(path: Path) -> None:
    """Send all that libraries print, also from C code, to the stage's log."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _keep_progress_bars_here() -> None:
    """Have tqdm guard its bars by a lock of this process.

    The first bar makes one for several processes, a named semaphore in a worker. Nothing takes it away when `serve`
    ends, and Python tells the user at the end of the run that it leaked (tqdm 4.70; so it was for merging an adapter).
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    tqdm.set_lock(threading.RLock())


def main(arguments: list[str]) -> None:
    """Entry under torchrun: rank 0 reports to the runner, the others only work."""
    run_dir, name = Path(arguments[0]), arguments[1]
    address = os.environ.get("LLMPIPE_EVENTS")
    if int(os.environ.get("RANK", "0")) == 0 and address:
        serve(Client(address, authkey=bytes.fromhex(os.environ["LLMPIPE_KEY"])), run_dir, name)
    asked: list[Stop] = []
    listen_to_signals(asked)

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "error":
            sys.stderr.write(f"{event['failure']}\n")

    sys.exit(run_reporting(run_dir, name, emit=emit, stop=lambda: asked[-1] if asked else None))


if __name__ == "__main__":
    main(sys.argv[1:])
