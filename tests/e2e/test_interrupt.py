"""Whatever ends a run, its folder stays valid: the same command goes on and ends with the weights of a quiet run."""

import json
import os
import re
import shutil
import signal
import subprocess

import pytest

from .conftest import RECIPE, Shell, actions, metrics, processes_in, wait_until, weights

LONGER = RECIPE.replace(
    "max_steps: 6, logging_steps: 2, eval_steps: 3", "max_steps: 90, logging_steps: 1, eval_steps: 20"
)
COMMAND = ("run", "tiny.yaml", "--until", "base")


@pytest.fixture(scope="session")
def quiet(tmp_path_factory, finished):
    """Train `base` without a break; returns its run directory."""
    shell = Shell(tmp_path_factory.mktemp("quiet"))
    shell.write("tiny.yaml", LONGER)
    shutil.copytree(finished[0] / "tok", shell.folder / "runs/tiny/tok")
    shell(*COMMAND)
    return shell.folder / "runs/tiny"


@pytest.fixture
def run_dir(llmpipe, finished):
    llmpipe.write("tiny.yaml", LONGER)
    shutil.copytree(finished[0] / "tok", llmpipe.folder / "runs/tiny/tok")
    return llmpipe.folder / "runs/tiny"


def start(llmpipe: Shell, run_dir, *, after: int) -> "subprocess.Popen[str]":
    """Start training, and return when some steps are done."""
    process = llmpipe.start(*COMMAND)
    wait_until(lambda: [line for line in metrics(run_dir / "base") if line["step"] >= after])
    return process


def end(process) -> tuple[int, str]:
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def state(llmpipe: Shell) -> str:
    rows = json.loads(llmpipe("status", "runs/tiny", "--json").stdout)["steps"]
    return str(next(row["state"] for row in rows if row["name"] == "base"))


def goes_on(llmpipe: Shell, run_dir, quiet, *, step: int | None = None) -> None:
    """Give the same command again: it resumes (from that step) and ends as the quiet run did."""
    done = llmpipe(*COMMAND)
    found = re.search(r"^  base  resuming from step (\d+)$", done.stderr, re.M)
    assert found and (step is None or int(found[1]) == step), done.stderr
    assert weights(run_dir / "base") == weights(quiet / "base")
    steps = [line["step"] for line in metrics(run_dir / "base") if "loss" in line]
    assert steps == list(range(1, 91)), "each step is logged once"
    times = [line["time_s"] for line in metrics(run_dir / "base")]
    assert times == sorted(times)
    assert set(actions(llmpipe, "tiny.yaml").values()) == {"skip", "run"}


def test_ctrl_c_saves_the_step_and_the_same_command_goes_on(llmpipe, run_dir, quiet):
    process = start(llmpipe, run_dir, after=5)
    process.send_signal(signal.SIGINT)
    code, said = end(process)
    assert code == 130
    assert "  stopping after this step and saving; once more to stop at once\n" in said
    found = re.search(
        r"^base: stopped after step (\d+), which is saved\n\nhint: the same command goes on\n\Z", said, re.M
    )
    assert found, said
    assert state(llmpipe) == "interrupted"
    assert f"from step {found[1]}" in llmpipe("plan", "tiny.yaml").stderr
    goes_on(llmpipe, run_dir, quiet, step=int(found[1]))


def test_sigterm_says_that_the_run_can_be_resumed(llmpipe, run_dir):
    process = start(llmpipe, run_dir, after=1)
    process.terminate()
    code, said = end(process)
    assert code == 75
    assert re.search(r"^base: stopped after step \d+, which is saved$", said, re.M)
    assert actions(llmpipe, "tiny.yaml")["base"] == "resume"


def test_a_worker_without_its_runner_ends_and_lets_go(llmpipe, run_dir, quiet):
    process = start(llmpipe, run_dir, after=21)
    process.kill()
    end(process)
    wait_until(lambda: not list(processes_in(run_dir)), seconds=5)
    assert json.loads(llmpipe("status", "runs/tiny", "--json").stdout)["running"] is False
    goes_on(llmpipe, run_dir, quiet, step=20)


def test_a_worker_that_is_killed(llmpipe, run_dir):
    process = start(llmpipe, run_dir, after=1)
    pid = json.loads((run_dir / ".worker.lock.json").read_text())["pid"]
    assert pid != process.pid
    os.kill(pid, signal.SIGKILL)
    code, said = end(process)
    assert code == 1
    assert said.endswith(
        "base: was killed; the system does that when memory runs out\n\n"
        "hint: lower batch_tokens or micro_batch_tokens, then give the same command again\n"
    )


def test_ctrl_c_twice_stops_at_once_and_the_next_run_goes_on(llmpipe, run_dir, quiet):
    process = start(llmpipe, run_dir, after=21)
    worker = json.loads((run_dir / ".worker.lock.json").read_text())["pid"]
    os.kill(worker, signal.SIGSTOP)  # it cannot save now: only the second Ctrl-C can end it
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGINT)
    code, said = end(process)
    assert code == 130
    assert said.endswith("base: stopped at once\n\nhint: the same command goes on\n")
    goes_on(llmpipe, run_dir, quiet, step=20)


def test_ctrl_c_at_the_terminal_before_the_first_step(llmpipe, run_dir):
    """A terminal sends it to all processes of the group; while libraries are imported there is nothing to save."""
    process = llmpipe.start(*COMMAND, cold=True)
    wait_until(lambda: (run_dir / "base/step.json").exists())
    os.killpg(process.pid, signal.SIGINT)
    code, said = end(process)
    assert code == 130
    assert said.endswith("\nstopped at once\n\nhint: the same command goes on\n")
    assert "Traceback" not in said
    assert actions(llmpipe, "tiny.yaml")["base"] == "rerun"


@pytest.mark.parametrize("torn", ["optimizer.pt", "complete.json", "scheduler.pt gone"])
def test_a_torn_checkpoint_is_passed_over(llmpipe, run_dir, quiet, torn):
    """Take a run to where it was at step 60, spoil that checkpoint, and go on from the one before."""
    shutil.copytree(quiet / "base", run_dir / "base")
    (run_dir / "base/manifest.json").unlink()
    kept = sorted((run_dir / "base/checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    assert len(kept) >= 2
    name, _, gone = torn.partition(" ")
    file = kept[-1] / name
    if gone:
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2)
    goes_on(llmpipe, run_dir, quiet, step=int(kept[-2].name.split("-")[1]))


def test_a_stop_during_a_stage_that_cannot_stop_midway(llmpipe, run_dir):
    """A tokenizer ends its work; the stage after it must not begin."""
    shutil.rmtree(run_dir / "tok")
    llmpipe.write("tiny.yaml", LONGER.replace("rows: 400}, vocab", "rows: 20000}, vocab"))
    process = llmpipe.start("run", "tiny.yaml")
    wait_until(lambda: (run_dir / ".worker.lock.json").exists())
    wait_until(lambda: json.loads((run_dir / ".worker.lock.json").read_text())["pid"] != process.pid)
    process.send_signal(signal.SIGINT)
    code, said = end(process)
    assert code == 130
    assert said.endswith("\nstopped after tok, which is done\n\nhint: the same command goes on\n")
    assert (run_dir / "tok/manifest.json").exists()
    assert not (run_dir / "base").exists()


def test_hours_of_an_interrupted_attempt_are_not_thrown_away(llmpipe, run_dir, quiet):
    """Changed settings begin anew; the checkpoints of before move to the history."""
    shutil.copytree(quiet / "base", run_dir / "base")
    (run_dir / "base/manifest.json").unlink()
    llmpipe(*COMMAND, "--set", "base.trainer.max_steps=2")
    (old,) = (run_dir / ".history").iterdir()
    assert (old / "checkpoints/checkpoint-90/complete.json").is_file()
