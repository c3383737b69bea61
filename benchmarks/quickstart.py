"""The quickstart against its promises: time, peak memory, stories about pairs that fine-tuning never saw, happy ends.

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

SECONDS, RLHF_SECONDS, PEAK_MB = 300, 75, 2048
FOLLOWS, FOLLOWS_AFTER_RLHF, HAPPY, PREFERS = 0.95, 0.90, 0.95, 0.95


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
    took = {step["name"]: step["seconds"] for step in report["steps"]}
    scores, base, judge, ppo = (metrics[name] for name in ("scores", "base", "judge", "ppo"))
    seconds, rlhf = sum(took.values()), took["judge"] + took["ppo"]
    follows = {model: scores[f"{model}.follows_share"] for model in ("base", "chat", "ppo")}
    happy = {model: scores[f"{model}.happy_share"] for model in ("chat", "ppo")}
    print(f"stages {seconds:.1f} s, of these reward {took['judge']:.1f} s and rlhf-ppo {took['ppo']:.1f} s")
    print(f"bits per byte {base['bits_per_byte_before']:.2f} -> {base['bits_per_byte']:.3f}")
    print("stories with both items, unseen pairs: " + " -> ".join(f"{share:.1%}" for share in follows.values()))
    print(f"the judge prefers the better story in {judge['held_out_accuracy']:.1%} of held-out pairs")
    print(f"happy endings {happy['chat']:.1%} -> {happy['ppo']:.1%} at a KL of {ppo['kl']:.2f} nats per story")
    kept = [
        (follows["chat"] >= FOLLOWS, f"{FOLLOWS:.0%} of the stories follow the request"),
        (follows["chat"] > follows["base"], "fine-tuning helps"),
        (judge["held_out_accuracy"] >= PREFERS, f"the judge prefers the better story in {PREFERS:.0%} of the pairs"),
        (happy["ppo"] >= HAPPY, f"{HAPPY:.0%} of the stories end happily after PPO"),
        (follows["ppo"] >= FOLLOWS_AFTER_RLHF, f"{FOLLOWS_AFTER_RLHF:.0%} still follow the request after PPO"),
        (seconds <= SECONDS, f"the stages take {SECONDS} s at most"),
        (rlhf <= RLHF_SECONDS, f"reward and rlhf-ppo take {RLHF_SECONDS} s at most"),
    ]
    return [promise for kept_it, promise in kept if not kept_it]


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
        problems += [] if peak <= PEAK_MB else [f"a peak of {PEAK_MB} MB at most"]
    for problem in problems:
        print(f"broken: {problem}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
