"""Make docs/quickstart.svg: the quickstart's own terminal output, as rich draws it.

    python docs/make_picture.py

Runs `llmpipe quickstart` in a pseudo-terminal, so that colours and layout are those of a real one.
"""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 96


def record(folder: str) -> str:
    """Return what the quickstart writes to a terminal, ANSI colours included."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TERM": "xterm-256color", "FORCE_COLOR": "1"}
    process = subprocess.Popen(["llmpipe", "quickstart"], stdout=theirs, stderr=theirs, cwd=folder, env=environment)
    os.close(theirs)
    output = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        output += part
    if process.wait():
        raise SystemExit(output.decode("utf-8", "replace"))
    return output.decode("utf-8")


def final_screen(output: str) -> str:
    """Replay what a terminal does with it: the progress bar goes back over its lines and erases them."""
    lines, row = [""], 0
    for part in re.split(r"(\r\n|\n|\r|\x1b\[\d*A|\x1b\[2K|\x1b\[\?25[lh])", output):
        if part in ("\n", "\r\n"):
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[2K" or part == "\r":
            lines[row] = "" if part == "\x1b[2K" else lines[row]
        elif part.endswith("A") and part.startswith("\x1b["):
            row = max(0, row - int(part[2:-1] or 1))
        elif not part.startswith("\x1b[?25"):
            lines[row] += part
    return "\n".join(lines).strip("\n")


def main() -> None:
    """Write the picture beside this script."""
    with tempfile.TemporaryDirectory() as folder:
        screen = final_screen(record(folder))
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("$ llmpipe quickstart\n" + screen))
    picture = Path(__file__).with_name("quickstart.svg")
    console.save_svg(str(picture), title="llmpipe quickstart")


if __name__ == "__main__":
    main()
