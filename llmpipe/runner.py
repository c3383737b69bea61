"""Steps → run directory: one process for each step, live progress, exit codes."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from llmpipe import artifact, console, launch, worker
from llmpipe.checkpoints import drop_incomplete
from llmpipe.context import Event
from llmpipe.errors import DataError, LlmpipeError, Problem, StageError, StoppedError, UsageError
from llmpipe.plan import Step


@dataclass
class Options:
    """How to run: in how many processes, in this one, and how much to say."""

    in_process: bool = False
    processes: int = 1
    explain: bool = False


@dataclass
class _Outcome:
    """What a step reported."""

    metrics: dict[str, Any] | None = None
    seconds: float = 0.0
    failure: LlmpipeError | None = None
    last: dict[str, Any] = field(default_factory=dict)


def open_run(run_dir: Path) -> None:
    """Make the run directory, or say why it cannot be."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(Problem(f"cannot be made: {error.strerror}", where=str(run_dir)), hint="--run DIR") from None
    if not os.access(run_dir, os.W_OK):
        raise UsageError(Problem("is not writable", where=str(run_dir)), hint="--run DIR")


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory for this command, once no worker of an earlier one is left in it."""
    holder = artifact.lock(run_dir)
    try:
        artifact.lock(run_dir, ".worker.lock", wait_s=10).release()
        yield
    finally:
        holder.release()


def run(steps: Sequence[Step], run_dir: Path, options: Options) -> None:
    """Run the steps of a plan that are not skipped; the run directory must be locked.

    Raises:
        LlmpipeError: a step failed or was stopped; the error says what to do next.
    """
    todo = [step for step in steps if step.action not in ("skip", "wait")]
    if todo and not options.in_process and options.processes == 1:
        launch.warm_up()
    for step in todo:
        prepare(step, run_dir)
        _run_step(step, run_dir, options)


def prepare(step: Step, run_dir: Path) -> None:
    """Put the stage's folder in order and write step.json; an output that is replaced moves to .history."""
    folder = run_dir / step.name
    if step.action == "resume":
        drop_incomplete(folder / "checkpoints")
        return
    old = artifact.read_step(folder)
    if folder.exists():
        if old is not None and artifact.read_manifest(folder) is not None:
            _to_history(folder, run_dir / ".history" / f"{step.name}-{old.fingerprint[:8]}")
        else:
            shutil.rmtree(folder)  # an unfinished attempt without a complete checkpoint holds nothing
    folder.mkdir(parents=True)
    artifact.write_json(folder / "step.json", step.record)


def _to_history(folder: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    free = next(path for path in (target, *(Path(f"{target}-{n}") for n in range(2, 10**6))) if not path.exists())
    folder.rename(free)


def _run_step(step: Step, run_dir: Path, options: Options) -> None:
    with console.Live(step.name) as live:
        outcome = _Outcome()

        def on_event(event: Event) -> None:
            _show(event, live, outcome, options)

        if options.in_process:
            code = _in_process(run_dir, step.name, on_event)
        else:
            code = _in_worker(launch.start(run_dir, step.name, processes=options.processes), on_event)
    if outcome.failure is not None:
        raise _with_place(outcome.failure, step.name)
    if outcome.metrics is None:
        raise _silent_death(step.name, code, run_dir)
    facts = [f"{outcome.last['step']} steps"] if "step" in outcome.last else []
    facts += [f"loss {live.losses[0]:.2f} → {live.losses[-1]:.2f}"] if len(live.losses) > 1 else []
    facts.append(console.seconds(outcome.seconds))
    console.say(f"  {step.name}  done  {'  '.join(facts)}", style="green")


def _show(event: Event, live: console.Live, outcome: _Outcome, options: Options) -> None:
    """Turn a worker's event into what the user sees and what the runner keeps."""
    match event["event"]:
        case "log" | "progress":
            outcome.last = {**outcome.last, **event}
            live.update(event)
        case "say":
            live.note(event["text"])
        case "explain" if options.explain:
            live.note(event["text"], style="italic cyan")
        case "done":
            outcome.metrics, outcome.seconds = event["metrics"], event["seconds"]
        case "error":
            outcome.failure = event["failure"]


def _in_process(run_dir: Path, name: str, on_event: Callable[[Event], None]) -> int:
    """Run a step here, for debuggers and profilers; Ctrl-C then stops as in a worker, after the step."""
    launch.set_environment()
    asked: list[worker.Stop] = []
    with _signals(lambda how: asked.append(how)):
        return worker.run_reporting(run_dir, name, emit=on_event, stop=lambda: asked[-1] if asked else None)


def _in_worker(process: launch.Worker, on_event: Callable[[Event], None]) -> int:
    """Follow a worker to its end. The first Ctrl-C or SIGTERM asks it to stop after its step, the second kills it."""
    asked: list[worker.Stop] = []

    def relay(how: worker.Stop) -> None:
        asked.append(how)
        if len(asked) == 1:
            process.ask_to_stop(how)
            console.say("  stopping after this step and saving; once more to stop at once", style="yellow")
        else:
            process.kill()

    with _signals(relay):
        while True:
            try:
                on_event(process.events.recv())
            except (EOFError, ConnectionResetError):
                break
        code = process.wait()
    process.events.close()
    if len(asked) > 1:
        on_event({"event": "error", "failure": _stopped_at_once(asked[-1])})
    return code


def _stopped_at_once(how: worker.Stop) -> LlmpipeError:
    return StoppedError("stopped at once", hint="the same command goes on", interrupted=how == "interrupt")


@contextmanager
def _signals(handle: Callable[[worker.Stop], None]) -> Iterator[None]:
    """Route SIGINT, SIGTERM and SIGHUP to a handler while a step runs."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; there, the caller has its own
        return

    def caught(number: int, _frame: FrameType | None) -> None:
        handle("interrupt" if number == signal.SIGINT else "terminate")

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), caught) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _with_place(failure: LlmpipeError, name: str) -> LlmpipeError:
    """Say which stage failed, unless the problems point into files themselves."""
    if isinstance(failure, DataError):
        return failure
    first = Problem(failure.problems[0].message, where=failure.problems[0].where, path=name)
    failure.problems = (first, *failure.problems[1:])
    return failure


def _silent_death(name: str, code: int, run_dir: Path) -> LlmpipeError:
    """Explain a worker that ended without a word: a kill, most often for memory, or a crash in native code."""
    if code == -signal.SIGKILL:
        message = "was killed; the system does that when memory runs out"
        hint = "lower batch_tokens or micro_batch_tokens, then give the same command again"
    else:
        message = f"ended without a word, exit code {code}"
        hint = f"see {run_dir / name / 'log.txt'}"
    return StageError(Problem(message, path=name), hint=hint)


def status(steps: Sequence[Step], run_dir: Path) -> list[dict[str, Any]]:
    """Describe every step for `--json` and the status table; the schema is public."""
    rows = []
    for step in steps:
        manifest = artifact.read_manifest(run_dir / step.name)
        done = manifest is not None and step.action == "skip"
        rows.append(
            {
                "name": step.name,
                "kind": step.record.kind,
                "state": "done" if done else {"resume": "interrupted", "rerun": "outdated"}.get(step.action, "to do"),
                "action": step.action,
                "reason": step.reason,
                "inputs": step.inputs,
                "changes": step.changes,
                "fingerprint": step.record.fingerprint,
                "seconds": manifest.seconds if manifest and done else None,
                "metrics": manifest.metrics if manifest and done else None,
            }
        )
    return rows
