"""How fast curate is beside datatrove's local executor, and that its memory does not grow with the text.

    python benchmarks/curate.py --pages c4.jsonl --datatrove DIR/bin/python --megabytes 10
    python benchmarks/curate.py --pages c4.jsonl --memory 10 100 1000        # or 4000: a file larger than memory

The corpus is the pages again and again, each time with half of the words changed, and a tenth of them as near copies.
Both sides take the filters of Gopher, C4 and FineWeb, then MinHash in 21 bands of 6 over runs of 5 words; llmpipe
compares what shares a band for real as well. datatrove is run as it comes, its words cut by spaCy, and with words cut
at spaces as llmpipe does (see curate_datatrove.py). Peaks are of the sum over all processes, sampled.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

STEPS = [{"step": "quality"}, {"step": "near_duplicates"}]
FILES = 4
SAMPLE_S = 0.1


def write_corpus(pages: Path, folder: Path, megabytes: int) -> int:
    """Write pages into a few files; returns their bytes."""
    rng = random.Random(0)
    first = [json.loads(line)["text"] for line in pages.read_text("utf-8").splitlines()]
    vocabulary = [word for text in first for word in text.split(" ")]
    folder.mkdir()
    files = [(folder / f"{number}.jsonl").open("w", encoding="utf-8") for number in range(FILES)]
    written = number = 0
    while written < megabytes * 1e6:
        share = rng.choice((0.01, *[0.5] * 9)) if number >= len(first) else 0.0
        words = first[number % len(first)].split(" ")
        text = " ".join(rng.choice(vocabulary) if rng.random() < share else word for word in words)
        written += files[number % FILES].write(json.dumps({"text": text, "id": str(number)}, ensure_ascii=False) + "\n")
        number += 1
    for file in files:
        file.close()
    return written


def ours(folder: Path, out: Path, processes: int) -> None:
    """Run the steps as the stage does; called in a process of its own."""
    from pydantic import TypeAdapter

    from llmpipe.artifact import StepRecord
    from llmpipe.context import Context
    from llmpipe.stages import curate

    (out / "corpus").mkdir(parents=True)
    settings = {"data": {"path": str(folder)}, "steps": STEPS, "processes": processes}
    record = StepRecord(name="corpus", kind="curate", stage_version=1, fingerprint="", seed=0, settings={}, inputs=[])
    found = curate.run(TypeAdapter(curate.Settings).validate_python(settings), Context(out, record, lambda _: None))
    sys.stdout.write(json.dumps(found.metrics))


def timed(command: list[str], *, limit_s: float = math.inf) -> tuple[float, float]:
    """Run a command, for so long; returns seconds and the peak resident memory of it and its children, in MB."""
    started, peak = time.monotonic(), 0.0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, sum(map(resident_mb, family(process.pid))))
            time.sleep(SAMPLE_S)
            if time.monotonic() - started > limit_s:
                process.kill()
                return time.monotonic() - started, peak
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read().decode()[-3000:])
    return time.monotonic() - started, peak


def family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below = path.read_text("utf-8").split()
        except OSError:
            continue
        for child in below:
            yield from family(int(child))


def resident_mb(pid: int) -> float:
    """Proportional set size: pages that processes share are counted once."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("Pss:")), 0.0)


def compare(arguments: argparse.Namespace, work: Path) -> None:
    size = write_corpus(arguments.pages, work / "pages", arguments.megabytes)
    other = [str(arguments.datatrove), str(Path(__file__).with_name("curate_datatrove.py")), str(work / "pages")]
    rates: dict[str, list[float]] = {"llmpipe": [], "datatrove": [], "datatrove, words at spaces": []}
    for turn in range(arguments.turns):
        for name, command in (
            ("llmpipe", ours_in(work / "pages", work / f"ours{turn}", arguments.processes)),
            ("datatrove", [*other, str(work / f"theirs{turn}"), str(arguments.processes), "spacy"]),
            ("datatrove, words at spaces", [*other, str(work / f"plain{turn}"), str(arguments.processes), "spaces"]),
        ):
            seconds, peak = timed(command)
            rates[name].append(seconds)
            print(f"{name:28} {seconds:7.1f} s  {size / seconds / 1e6:6.2f} MB/s  peak {peak:6.0f} MB")
    best = {name: min(times) for name, times in rates.items()}
    for name in list(best)[1:]:
        print(f"llmpipe is {best[name] / best['llmpipe']:.2f} times as fast as {name}")


def ours_in(folder: Path, out: Path, processes: int) -> list[str]:
    return [sys.executable, __file__, "--ours", str(folder), str(out), "--processes", str(processes)]


def memory(arguments: argparse.Namespace, work: Path) -> None:
    for megabytes in arguments.memory:
        write_corpus(arguments.pages, work / f"{megabytes}", megabytes)
        seconds, peak = timed(ours_in(work / f"{megabytes}", work / f"out{megabytes}", arguments.processes))
        print(f"{megabytes:6} MB of text  {seconds:7.1f} s  peak {peak:6.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, help="JSON lines with text")
    parser.add_argument("--datatrove", type=Path, help="python of an environment that has datatrove")
    parser.add_argument("--megabytes", type=int, default=10)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--memory", type=int, nargs="+", metavar="MB", help="measure peaks for these sizes instead")
    parser.add_argument("--ours", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        ours(*arguments.ours, arguments.processes)
        return
    with tempfile.TemporaryDirectory() as folder:
        (memory if arguments.memory else compare)(arguments, Path(folder))


if __name__ == "__main__":
    main()
