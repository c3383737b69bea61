"""One command at a time works in a run directory; the next is told at once who does, and looking is always allowed."""

import json
import os
import shutil
import signal
import socket
import time

import pytest

from .conftest import RECIPE, slowness, wait_until

LONGER = RECIPE.replace("max_steps: 6", "max_steps: 100000")


@pytest.mark.alone
def test_a_second_run_is_refused_at_once(llmpipe, finished):
    llmpipe.write("tiny.yaml", LONGER)
    run_dir = llmpipe.folder / "runs/tiny"
    shutil.copytree(finished[0] / "tok", run_dir / "tok")
    process = llmpipe.start("run", "tiny.yaml", "--until", "base")
    try:
        wait_until(lambda: (run_dir / "base/metrics.jsonl").exists())
        slower = slowness()
        begun = time.monotonic()
        refused = llmpipe("run", "runs/tiny", code=6)
        assert time.monotonic() - begun < 2 * slower
        assert refused.stderr == (
            f"runs/tiny is in use by another llmpipe (process {process.pid} on {socket.gethostname()})\n\n"
            "hint: wait for it, or give this run a folder: --run DIR\n"
        )
        as_json = json.loads(llmpipe("run", "runs/tiny", "--json", code=6).stdout)
        assert as_json["error"]["exit_code"] == 6
        assert llmpipe("status", "runs/tiny").stdout.startswith("runs/tiny is being worked on\n")
        llmpipe("plan", "tiny.yaml")
        llmpipe("run", "tiny.yaml", "--run", "other", "--until", "tok", "--in-process")
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 75
    assert llmpipe("status", "runs/tiny", "--json").stdout.count('"running": false') == 1
