"""`python -m llmpipe.curation.datatrove.here PIPELINE`: runs a pipeline file; ends with the process that started it.

datatrove's local executor starts processes of its own, which would go on writing after llmpipe was killed.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _end_with_parent() -> None:
    while os.read(0, 1):  # not by sys.stdin: a process forked meanwhile would wait for its lock
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_path(sys.argv[1], run_name="__main__")
