"""The installed command, except that its stages are forked from a server that the tests keep.

A run starts a fork server of its own, which imports torch and the trainers for seconds. That is shown by the tests of
test_startup.py and by every command that is given an environment; the others need not wait for it again and again.

    python -P warm.py ADDRESS run recipe.yaml
"""

from __future__ import annotations

import functools
import os
import sys
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from unittest import mock


@functools.cache
def server(**environment: str) -> tuple[forkserver.ForkServer, str]:
    """Start a fork server as a run does, which ends with the tests; returns it, to be kept, and its address."""
    from llmpipe import launch

    found = forkserver.ForkServer()
    found.set_forkserver_preload(["llmpipe.training.preload"])
    with mock.patch.dict(os.environ, environment, clear=True), launch._ctrl_c_ignored():
        launch.set_environment()
        found.ensure_running()
    return found, os.fsdecode(found._forkserver_address)


def command(**environment: str) -> list[str]:
    """Return the command's beginning, with the address of a server that has this environment."""
    return [sys.executable, "-P", __file__, server(**environment)[1]]


def main() -> None:
    """Run the command with a fork server that is there already."""
    address = sys.argv.pop(1)
    sys.argv[0] = str(Path(sys.executable).with_name("llmpipe"))
    known = forkserver._forkserver
    known._forkserver_address = address
    _, known._forkserver_alive_fd = os.pipe()  # the server's own is the tests'
    known.ensure_running = resource_tracker.ensure_running  # type: ignore[method-assign]
    from llmpipe.cli import app

    sys.exit(app())


if __name__ == "__main__":
    main()
