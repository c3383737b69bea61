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
    """Drop what was drawn over: the progress bar erases its line before each redraw."""
    lines = []
    for line in output.replace("\r\n", "\n").split("\n"):
        kept = re.split(r"\x1b\[2K|\r", line)[-1]
        kept = re.sub(r"\x1b\[(?:\?25[lh]|\d*[A-K])", "", kept)
        if kept != line and "━" in kept:
            continue
        lines.append(kept)
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
