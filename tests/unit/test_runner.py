"""Signals, and a run directory that leads elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmpipe import launch, runner, worker
from llmpipe.artifact import StepRecord
from llmpipe.errors import ExitCode, StageError, StoppedError, UsageError
from llmpipe.plan import Step


class Made:
    """A worker that knows whether it was killed."""

    killed = False

    def kill(self) -> None:
        self.killed = True


def test_a_signal_while_a_worker_is_made_waits_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised at once, it would leave a child with half a message, which prints a traceback over the terminal."""
    stop, made = runner._Stop(in_process=False), Made()

    def start(*_: Any, **__: Any) -> Made:
        stop("interrupt")
        return made

    monkeypatch.setattr(launch, "start", start)
    with pytest.raises(StoppedError, match="stopped at once") as stopped:
        runner._started(Path("run"), "base", runner.Options(), stop)
    assert made.killed and stopped.value.code == ExitCode.INTERRUPTED
    with pytest.raises(StoppedError):  # and no longer, where none is being made
        stop("interrupt")


@pytest.mark.parametrize(("name", "how"), [("SIGTERM", "terminate"), ("SIGUSR1", "terminate"), ("SIGINT", "interrupt")])
def test_signals_ask_for_a_stop(name: str, how: str) -> None:
    """Slurm warns by SIGUSR1 that a job's time is nearly over."""
    asked: list[str] = []
    before = signal.getsignal(getattr(signal, name))
    with runner._signals(asked.append):
        os.kill(os.getpid(), getattr(signal, name))
        os.kill(os.getpid(), 0)
    assert asked == [how]
    assert signal.getsignal(getattr(signal, name)) is before


def test_every_process_of_a_run_survives_what_slurm_sends() -> None:
    """The fork server ignores it, and a worker that is forked from it takes it as a request."""
    code = "import signal; print(signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN)"
    with launch._signals_ignored():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    asked: list[Any] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        worker.listen_to_signals(asked)
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert asked == ["terminate", "interrupt", "terminate"]


CHILD = """
import os, signal, sys
from llmpipe import console, runner
asked = []
with runner._signals(asked.append):
    os.kill(os.getpid(), signal.SIGHUP)
    console.say("after")
open(sys.argv[1], "w", encoding="utf-8").write(repr(asked))
"""


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_gone(nohup: bool, tmp_path: Path) -> None:
    """It asks for a stop and nothing is written to it any more; under nohup the work goes on."""

    def begun() -> None:  # whoever runs the tests may have gone by nohup, too
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)

    command = [sys.executable, "-c", CHILD, str(tmp_path / "asked")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=begun, check=True)
    assert (tmp_path / "asked").read_text(encoding="utf-8") == ("[]" if nohup else "['terminate']")
    assert done.stderr == ("after\n" if nohup else "")


def test_nobody_reads_on_and_the_work_does(tmp_path: Path) -> None:
    code = (
        "import sys; from llmpipe import console\n"
        "sys.stdin.read()\n"
        "for _ in range(3): console.say('line')\n"
        "console.data('the result')"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr and child.stdin and child.stdout
    child.stderr.close()
    child.stdin.close()
    assert child.stdout.read() == "the result\n"
    assert child.wait() == 0
    child.stdout.close()


RECORD = StepRecord(name="x", kind="sft", stage_version=1, fingerprint="f", seed=1, settings={}, inputs=[])


@pytest.mark.parametrize("link", ["x", "x/checkpoints", "x/model", "x/log.txt", ".history"])
@pytest.mark.parametrize("action", ["rerun", "resume"])
def test_no_link_leads_out_of_the_run_directory(link: str, action: Any, tmp_path: Path) -> None:
    outside, run_dir = tmp_path / "outside", tmp_path / "run"
    (outside / "checkpoint-1").mkdir(parents=True)
    (outside / "kept").write_text("kept", encoding="utf-8")
    (run_dir / link).parent.mkdir(parents=True, exist_ok=True)
    (run_dir / link).symlink_to(outside)
    with pytest.raises(StageError) as caught:
        runner.prepare(Step(RECORD, action, "", []), run_dir)
    assert str(caught.value) == f"{run_dir / link}: is a link; a stage writes into its own folder"
    assert sorted(path.name for path in outside.iterdir()) == ["checkpoint-1", "kept"]


def test_a_folder_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so that a folder of a test cannot show it."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError) as caught:
        runner.open_run(tmp_path)
    assert (str(caught.value), caught.value.hint) == (f"{tmp_path}: is not writable", "--run DIR")
