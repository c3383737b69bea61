"""The installed command, except that its stages are forked from a server that the tests keep.

A run starts a fork server of its own, which imports torch and the trainers for seconds. `finished`, test_startup.py,
tests/real and every command that is given an environment wait for that; the others need not, again and again.

    python -P warm.py ADDRESS run recipe.yaml
"""

from __future__ import annotations

import functools
import os
import sys
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

# before Python 3.14, whose fork server asks its clients for a key; elsewhere llmpipe has no fork server
IS_POSSIBLE = sys.platform == "linux" and sys.version_info < (3, 14)


@functools.cache
def server(environment: frozenset[tuple[str, str]]) -> forkserver.ForkServer:
    """Start a fork server as a run does; it ends with the process that started it.

    A worker's environment is its server's, so that there is a server for each environment.
    """
    from unittest import mock

    from llmpipe import launch

    found = forkserver.ForkServer()
    found.set_forkserver_preload(["llmpipe.training.preload"])
    with mock.patch.dict(os.environ, dict(environment), clear=True), launch._signals_ignored():
        launch.set_environment()
        found.ensure_running()
    return found


def command(environment: dict[str, str]) -> list[str]:
    """Return how the command begins, with the address of a server that has this environment."""
    # pytest sets it to another text for each test
    same = {key: value for key, value in environment.items() if key != "PYTEST_CURRENT_TEST"}
    return [sys.executable, "-P", __file__, os.fsdecode(server(frozenset(same.items()))._forkserver_address)]


def main() -> None:
    """Run the command with a fork server that is there already."""
    address = sys.argv.pop(1)
    sys.argv[0] = str(Path(sys.executable).with_name("llmpipe"))
    known = forkserver._forkserver
    known._forkserver_address = address
    _, known._forkserver_alive_fd = os.pipe()  # the server's own is held by the tests
    # as a method, and as the function that a run calls first: either would start a server of the command's own
    known.ensure_running = forkserver.ensure_running = resource_tracker.ensure_running  # type: ignore[method-assign]
    from llmpipe.cli import app

    sys.exit(app())


if __name__ == "__main__":
    main()
