"""Two processes under torchrun: they train together, agree, and an interrupted run goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal

from .conftest import RECIPE, metrics, wait_until, weights

LONGER = RECIPE.replace("max_steps: 6", "max_steps: 60").replace("eval_steps: 3", "eval_steps: 30, logging_steps: 1")


def test_two_processes_train_and_resume(llmpipe) -> None:
    recipe = LONGER.replace("logging_steps: 2, ", "")
    llmpipe.write("two.yaml", recipe)
    llmpipe("run", "two.yaml", "--run", "whole", "--until", "base", "--processes", "2")
    manifest = json.loads((llmpipe.folder / "whole/base/manifest.json").read_text(encoding="utf-8"))
    assert manifest["metrics"]["steps"] == 60
    assert manifest["metrics"]["tokens"] == 60 * 2 * 4 * 64  # both processes' rows count
    assert manifest["metrics"]["held_out_loss"] < manifest["metrics"]["held_out_loss_before"]

    shutil.copytree(llmpipe.folder / "whole/tok", llmpipe.folder / "cut/tok")
    process = llmpipe.start("run", "two.yaml", "--run", "cut", "--until", "base", "--processes", "2")
    wait_until(lambda: metrics(llmpipe.folder / "cut/base"))
    os.kill(process.pid, signal.SIGINT)
    output = process.communicate(timeout=120)
    assert process.returncode == 130, output
    done = llmpipe("run", "two.yaml", "--run", "cut", "--until", "base", "--processes", "2")
    assert "resuming from step" in done.stderr
    assert weights(llmpipe.folder / "cut/base") == weights(llmpipe.folder / "whole/base")
