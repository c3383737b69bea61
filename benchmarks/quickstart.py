"""The quickstart against its promises: time, peak memory, and stories about pairs that fine-tuning never saw.

    python benchmarks/quickstart.py                    run it in a temporary folder and check
    python benchmarks/quickstart.py --check RUN.json   check what `llmpipe quickstart --json` printed

Exits 1 when a promise is broken. Time is for a quiet machine with two cores that multiply fp32 at 120 GFLOP/s.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS, PEAK_MB, FOLLOWS = 180, 2048, 0.95


def run() -> tuple[dict, float, float]:
    """Run the installed command; returns its JSON, wall seconds, and the peak memory of its largest process in MB."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        command = ["llmpipe", "quickstart", "--run", str(Path(folder) / "quickstart"), "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peak = watch_memory(process)
        printed = process.communicate()[0]
        if process.returncode:
            sys.exit(f"quickstart exited {process.returncode}")
        return json.loads(printed), time.perf_counter() - begun, peak


def watch_memory(process: subprocess.Popen) -> float:
    """Sum the resident memory of the command and all it started, ten times a second; return the most, in MB."""
    import psutil

    peak = 0.0
    while process.poll() is None:
        total = 0
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for member in family:
                total += member.memory_full_info().pss  # shared pages of forked workers are counted once
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        peak = max(peak, total / 2**20)
        time.sleep(0.1)
    return max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10 if not peak else 0)


def broken_promises(report: dict) -> list[str]:
    """Compare the stages' metrics with what the README promises."""
    metrics = {step["name"]: step["metrics"] for step in report["steps"]}
    seconds = sum(step["seconds"] for step in report["steps"])
    before, after = (metrics["scores"][f"{model}.follows_share"] for model in ("base", "chat"))
    base = metrics["base"]
    print(
        f"stages {seconds:.1f} s; bits per byte {base['bits_per_byte_before']:.2f} -> {base['bits_per_byte']:.3f}; ",
        end="",
    )
    print(f"stories with both items, unseen pairs: {before:.1%} -> {after:.1%}")
    problems = (
        [] if after >= FOLLOWS else [f"{after:.1%} of the stories follow the request, {FOLLOWS:.0%} are promised"]
    )
    problems += [] if seconds <= SECONDS else [f"the stages took {seconds:.0f} s, {SECONDS} s are promised"]
    problems += [] if after > before else ["fine-tuning did not help"]
    return problems


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", type=Path)
    options = parser.parse_args()
    if options.check:
        problems = broken_promises(json.loads(options.check.read_text(encoding="utf-8")))
    else:
        report, wall, peak = run()
        problems = broken_promises(report)
        print(f"wall {wall:.1f} s, peak memory {peak:,.0f} MB")
        problems += [] if peak <= PEAK_MB else [f"peak memory {peak:,.0f} MB, {PEAK_MB} MB are promised"]
    for problem in problems:
        print(f"broken: {problem}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
