"""PPO that is killed, by the installed command: the same command again ends with the weights of a quiet run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

from .conftest import Shell, processes_in, wait_until, weights

# a rollout has four steps, two epochs of two minibatches: a checkpoint every sixth is in a rollout's middle, or its end
PPO = """\
name: tiny
seed: 1
stages:
  ppo:
    kind: rlhf-ppo
    model: {path: base}
    reward: {function: judge.py:vowels}
    data: {path: prompts.jsonl}
    chat: false
    rollouts: 4
    rollout: {samples: 8, max_new_tokens: 6}
    held_out: {share: 0.3}
    evaluate_every: 4
    keep: last
    precision: fp32
    trainer: {save_steps: 6, learning_rate: 1e-3}
"""

# the call whose number is in the file `hold` waits to be killed
JUDGE = """\
import time
from pathlib import Path

HERE = Path(__file__).parent
calls = 0


def vowels(prompts, answers):
    global calls
    calls += 1
    while (HERE / "hold").exists() and (HERE / "hold").read_text() == str(calls):
        (HERE / "held").touch()
        time.sleep(0.05)
    return [sum(map(answer.count, "aeiou")) for answer in answers]
"""

COMMAND = ("run", "tiny.yaml", "--allow-code")
PROMPTS = "a duck,a shoe,the sea,my hat,one egg,the rain,two cats,his nose".split(",")


def prepared(shell: Shell, finished: tuple[Path, Any]) -> Path:
    """Write what a run reads; returns the stage's folder."""
    shell.write("tiny.yaml", PPO)
    shell.write("judge.py", JUDGE)
    shell.write("prompts.jsonl", "\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS))
    shutil.copytree(finished[0] / "base" / "model", shell.folder / "base")
    return shell.folder / "runs/tiny/ppo"


def quiet_run(folder: Path, finished: tuple[Path, Any], *options: str) -> Path:
    shell = Shell(folder)
    stage = prepared(shell, finished)
    shell(*COMMAND, *options)
    return stage


def kill(shell: Shell, stage: Path, *options: str, call: int) -> None:
    """Run until answers are scored for the so-manieth time, and kill all processes at once."""
    (shell.folder / "hold").write_text(str(call))
    process = shell.start(*COMMAND, *options)
    wait_until(lambda: (shell.folder / "held").exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    worker = json.loads((stage.parent / ".worker.lock.json").read_text())["pid"]
    started = {process.pid, worker, *processes_in(stage.parent)}
    for pid in started:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_until(lambda: not list(processes_in(stage.parent)), seconds=10)
    assert not (stage / "manifest.json").exists()
    (shell.folder / "hold").unlink()
    (shell.folder / "held").unlink()


def resumes(shell: Shell, *options: str, step: int) -> None:
    done = shell(*COMMAND, *options)
    assert re.search(rf"^  ppo  resuming from step {step}$", done.stderr, re.M), done.stderr


def same_result(stage: Path, quiet: Path) -> None:
    assert weights(stage) == weights(quiet)
    manifests = [json.loads((folder / "manifest.json").read_text())["metrics"] for folder in (stage, quiet)]
    of_the_machine = re.compile("per_s|gates_seconds|peak_memory")
    kept = [{key: value for key, value in found.items() if not of_the_machine.search(key)} for found in manifests]
    assert kept[0] == kept[1] and kept[0]["rollouts"] == 4


def test_a_run_that_is_killed_twice_goes_on_to_the_bit(llmpipe, finished, tmp_path_factory) -> None:
    """In rollout 3, after step 8: from the middle of rollout 2. In rollout 4: from the border of rollout 3."""
    quiet = quiet_run(tmp_path_factory.mktemp("quiet"), finished)
    stage = prepared(llmpipe, finished)
    kill(llmpipe, stage, call=4)  # rollout 1, held-out prompts, rollouts 2 and 3
    assert (stage / "checkpoints/checkpoint-6/complete.json").exists()
    kill(llmpipe, stage, call=2)  # rollouts 3 and 4
    assert (stage / "checkpoints/checkpoint-12/complete.json").exists()
    resumes(llmpipe, step=12)
    same_result(stage, quiet)


def test_two_processes_train_are_killed_and_go_on(llmpipe, finished, tmp_path_factory) -> None:
    two = ("--processes", "2")
    quiet = quiet_run(tmp_path_factory.mktemp("two"), finished, *two)
    stage = prepared(llmpipe, finished)
    kill(llmpipe, stage, *two, call=4)
    alone = llmpipe(*COMMAND, code=1)
    assert (
        "the checkpoint was saved by 2 processes, and 1 are running\n\nhint: --processes 2, or --force" in alone.stderr
    )
    resumes(llmpipe, *two, step=6)
    same_result(stage, quiet)
    start = (llmpipe.folder / "base/model.safetensors").read_bytes()
    assert (stage / "model/model.safetensors").read_bytes() != start
