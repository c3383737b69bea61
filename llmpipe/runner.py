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

from llmpipe import artifact, bounds, console, functions, launch, lease, redaction, worker
from llmpipe.checkpoints import complete_checkpoints, drop_incomplete
from llmpipe.context import Event
from llmpipe.data.rows import shown
from llmpipe.errors import DataError, LlmpipeError, Problem, StageError, StoppedError, UsageError
from llmpipe.plan import Step


@dataclass
class Options:
    """How to run: in how many processes, in this one, how much to say, and whether the user's own code may run."""

    in_process: bool = False
    processes: int = 1
    explain: bool = False
    allow_code: bool = False


@dataclass
class _Outcome:
    """What a step reported."""

    metrics: dict[str, Any] | None = None
    seconds: float = 0.0
    failure: LlmpipeError | None = None
    last: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Stop:
    """What the user's signals ask for: the first has the step at work finish and save, the next ends it at once."""

    in_process: bool
    asked: list[worker.Stop] = field(default_factory=list)
    at_work: launch.Worker | None = None
    starting: bool = False

    def __call__(self, how: worker.Stop) -> None:
        self.asked.append(how)
        if self.starting:
            return
        if len(self.asked) == 1 and (self.at_work or self.in_process):
            if self.at_work:
                self.at_work.ask_to_stop(how)
            console.say("  stopping after this step and saving; once more to stop at once", style="yellow")
        elif self.at_work:
            self.at_work.kill()
        else:
            raise self.error("stopped at once")

    def error(self, message: str) -> StoppedError:
        """Say that the run was stopped; the exit code tells Ctrl-C from SIGTERM."""
        return StoppedError(message, hint="the same command goes on", interrupted=self.asked[-1] == "interrupt")


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
        with lease.held(run_dir):
            artifact.lock(run_dir, ".worker.lock", wait_s=10).release()
            yield
    finally:
        holder.release()


def refuse_code(steps: Sequence[Step], options: Options) -> None:
    """Refuse Python functions that a recipe names, unless it was said that they may run.

    Raises:
        UsageError: a step that is not skipped would run one.
    """
    if options.allow_code:
        return
    problems = []
    for step in steps:
        for entry in step.record.inputs if step.action not in ("skip", "wait") else ():
            if "function" in entry.source:
                file, name = functions.split(entry.source["function"])
                problems.append(Problem(f"stage {step.name} would run '{name}' of this file", where=shown(Path(file))))
    if problems:
        raise UsageError(problems, hint="read it; if it may run, add --allow-code")


def run(steps: Sequence[Step], run_dir: Path, options: Options) -> None:
    """Run the steps of a plan that are not skipped; the run directory must be locked.

    Raises:
        BoundError: a step that is done, now or before, crosses a bound of the recipe's; no later one was run.
        LlmpipeError: a step failed or was stopped; the error says what to do next.
    """
    refuse_code(steps, options)
    todo = [step for step in steps if step.action not in ("skip", "wait")]
    stop = _Stop(in_process=options.in_process)
    if todo and not options.in_process and options.processes == 1:
        launch.warm_up()
    with _signals(stop):
        for step in steps:
            if step in todo:
                prepare(step, run_dir)
                _run_step(step, run_dir, options, stop)
            if stop.asked:  # too late for this step to notice
                raise stop.error(f"stopped after {step.name}, which is done")
            if step.is_chosen:
                bounds.refuse(step.record, run_dir)


def prepare(step: Step, run_dir: Path) -> None:
    """Put the stage's folder in order and write step.json; an output that is replaced moves to .history."""
    folder = run_dir / step.name
    for path in (run_dir / ".history", folder, *folder.glob("*")):
        if path.is_symlink():
            raise StageError(
                Problem("is a link; a stage writes into its own folder", where=str(path)), hint="delete it"
            )
    try:
        if step.action == "resume":
            drop_incomplete(folder / "checkpoints")
            return
        _clear(folder, run_dir / ".history")
        folder.mkdir(parents=True)
    except OSError as error:
        raise artifact.cannot_write(error, folder) from error
    artifact.write_json(folder / "step.json", step.record)


def _clear(folder: Path, history: Path) -> None:
    """Make way for a stage: its own attempt without a complete checkpoint goes, anything else moves to the history."""
    if not folder.exists():
        return
    old = artifact.read_step(folder)
    if old and not artifact.read_manifest(folder) and not complete_checkpoints(folder / "checkpoints"):
        shutil.rmtree(folder)
        return
    history.mkdir(exist_ok=True)
    mark = old.fingerprint[:8] if old else "unknown"  # a folder of the user's that has a stage's name, for one
    names = (f"{folder.name}-{mark}{number}" for number in ("", *(f"-{n}" for n in range(2, 10**6))))
    folder.rename(next(history / name for name in names if not (history / name).exists()))


def _run_step(step: Step, run_dir: Path, options: Options, stop: _Stop) -> None:
    with console.Live(step.name) as live:
        outcome = _Outcome()

        def on_event(event: Event) -> None:
            _show(event, live, outcome, options)

        if options.in_process:
            code = _in_process(run_dir, step.name, on_event, stop)
        else:
            code = _in_worker(_started(run_dir, step.name, options, stop), on_event, stop)
        redaction.redact_file(run_dir / step.name / "log.txt")
    if outcome.failure is not None:
        raise _with_place(outcome.failure, step.name)
    if outcome.metrics is None:
        raise _silent_death(step.name, code, run_dir)
    facts = [f"{outcome.last['step']} steps"] if "step" in outcome.last else []
    facts += [f"loss {live.losses[0]:.2f} → {live.losses[-1]:.2f}"] if len(live.losses) > 1 else []
    rewards = list(live.rewards.values())
    facts += [f"reward {rewards[0]:.2f} → {rewards[-1]:.2f}"] if len(rewards) > 1 else []
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


def _in_process(run_dir: Path, name: str, on_event: Callable[[Event], None], stop: _Stop) -> int:
    """Run a step here, for debuggers and profilers; Ctrl-C then stops as in a worker, after the step."""
    launch.set_environment()
    return worker.run_reporting(run_dir, name, emit=on_event, stop=lambda: stop.asked[-1] if stop.asked else None)


def _started(run_dir: Path, name: str, options: Options, stop: _Stop) -> launch.Worker:
    """Start a worker; a signal meanwhile waits, for one that got half of its message would print a traceback."""
    stop.starting = options.processes == 1  # torchrun takes its time, and prints into the log
    try:
        process = launch.start(run_dir, name, processes=options.processes)
    finally:
        stop.starting = False
    if stop.asked:
        process.kill()
        raise stop.error("stopped at once")
    return process


def _in_worker(process: launch.Worker, on_event: Callable[[Event], None], stop: _Stop) -> int:
    """Follow a worker to its end."""
    stop.at_work = process
    while True:
        try:
            on_event(process.events.recv())
        except (EOFError, ConnectionResetError):
            break
    code = process.wait()
    stop.at_work = None
    process.events.close()
    if len(stop.asked) > 1:
        on_event({"event": "error", "failure": stop.error("stopped at once")})
    return code


@contextmanager
def _signals(handle: Callable[[worker.Stop], None]) -> Iterator[None]:
    """Route SIGINT, SIGTERM, SIGHUP and SIGUSR1, which Slurm warns by, to a handler while steps run."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; there, the caller has its own
        return

    def caught(number: int, _frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGHUP", None):
            console.mute(1, 2)  # there is no terminal to write to any more
        handle("interrupt" if number == signal.SIGINT else "terminate")

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
    if "SIGHUP" in names and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        names.remove("SIGHUP")  # nohup asked to go on
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
