"""Start-up: `llmpipe --help` against a bare Typer app with as many commands, `plan`, and how fast a worker is ready.

    python benchmarks/startup.py [--rounds 15]

All commands take turns; medians of whole processes. A worker's readiness is from the fork to the first line of its
stage, for every worker after the first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = """
import typer
app = typer.Typer()
def make(number):
    def command(path: str, count: int = 1, flag: bool = False) -> None:
        "Do something useful with a path."
    return command
for number in range({commands}):
    app.command(f"command{{number}}")(make(number))
app()
"""


def timed(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def worker_ready_s(workers: int = 5) -> tuple[float, float]:
    """Return seconds to readiness of the first worker, and the median of the later ones."""
    from llmpipe import launch
    from llmpipe.artifact import StepRecord, write_json

    ready = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(workers + 1):
            folder = Path(temporary) / f"s{number}"
            folder.mkdir()
            settings = {"kind": "tokenizer", "data": [{"builtin": "storyworld", "rows": 1}], "algorithm": "byte"}
            record = StepRecord(
                name=folder.name,
                kind="tokenizer",
                stage_version=1,
                fingerprint="",
                seed=0,
                settings=settings,
                inputs=[],
            )
            write_json(folder / "step.json", record)
            begun = time.perf_counter()
            worker = launch.start(Path(temporary), folder.name, processes=1)
            worker.events.recv()  # the stage's first word: "reading text"
            ready.append(time.perf_counter() - begun)
            while True:
                try:
                    worker.events.recv()
                except EOFError:
                    break
            worker.wait()
    return ready[0], statistics.median(ready[1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    from llmpipe.cli import app

    llmpipe = str(Path(sys.executable).with_name("llmpipe"))
    os.environ["COLUMNS"] = "100"
    with tempfile.TemporaryDirectory() as temporary:
        bare = Path(temporary) / "bare.py"
        bare.write_text(BARE.format(commands=len(app.registered_commands)), encoding="utf-8")
        commands = {
            "bare Typer app --help": [sys.executable, str(bare), "--help"],
            "llmpipe --help": [llmpipe, "--help"],
            "llmpipe plan quickstart": [llmpipe, "plan", "quickstart", "--run", temporary],
            "llmpipe plan smollm-sft": [llmpipe, "plan", "smollm-sft", "--run", temporary],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, command in commands.items():
                seconds = timed(command)
                if number:  # the first round warms the disk
                    times[name].append(seconds)
    for name, measured in times.items():
        print(f"{name:<26} {statistics.median(measured):.3f} s")
    ratios = [b / a for a, b in zip(times["bare Typer app --help"], times["llmpipe --help"], strict=True)]
    print(f"llmpipe --help / bare      {statistics.median(ratios):.2f}")
    first, later = worker_ready_s()
    print(f"first worker ready         {first:.2f} s\nlater workers ready        {later:.3f} s")


if __name__ == "__main__":
    main()
