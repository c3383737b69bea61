"""The quickstart against its promises: time, memory, faults found in the text, stories about pairs that it was never
taught, happy ends, pirates.

    python benchmarks/quickstart.py                    run it in a temporary folder and check
    python benchmarks/quickstart.py --check RUN.json   check what `llmpipe quickstart --json` printed

Exits 1 when a promise is broken. Seconds are those of a quiet machine with two cores that multiply fp32 at 120 GFLOP/s;
one that is slower at that, measured in the same run, is given more of them in proportion.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS, RLHF_SECONDS, LORA_SECONDS, CURATE_SECONDS, PEAK_MB = 300, 75, 20, 10, 2048
GFLOP_PER_S = 120
GATES, GATES_S = 0.05, 0.5
"""What the gates of a stage may take of its time; of a stage of a few seconds, the seconds that they may take."""
FOUND = 0.99
FOLLOWS, FOLLOWS_AFTER_RLHF, HAPPY, PREFERS = 0.95, 0.90, 0.95, 0.95
FOLLOWS_AS_PIRATE, PIRATE, TRAINED = 0.90, 0.95, 0.05


def run(folder: str) -> tuple[dict, float, float]:
    """Run the installed command; returns its JSON, wall seconds, and the peak memory of all its processes in MB."""
    begun = time.perf_counter()
    command = ["llmpipe", "quickstart", "--run", str(Path(folder) / "quickstart"), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = watch_memory(process)
    printed = process.communicate()[0]
    if process.returncode:
        sys.exit(f"quickstart exited {process.returncode}")
    return json.loads(printed), time.perf_counter() - begun, peak


def watch_memory(process: subprocess.Popen, *, every_s: float = 0.1) -> float:
    """Sum the resident memory of the command and all it started; return the most, in MB.

    A process with gigabytes is held up while its pages are counted: look at such a one less often.
    """
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
        time.sleep(every_s)
    return max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10 if not peak else 0)


def slowness() -> float:
    """Return how many times slower this machine multiplies than the one that the seconds are for; 1 or more."""
    import torch

    one, other = torch.randn(2, 1024, 1024)
    seconds = []
    for _ in range(60):
        begun = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - begun)
    speed = 2 * 1024**3 / statistics.median(seconds[10:]) / 1e9
    print(f"this machine multiplies fp32 at {speed:.0f} GFLOP/s")
    return max(1.0, GFLOP_PER_S / speed)


def broken_promises(report: dict) -> list[str]:
    """Compare the stages' metrics with what the README promises."""
    return [
        promise
        for kept, promise in [
            *in_time(report),
            *in_gates(report),
            *in_quality(report),
            *old_skill(Path(report["run"])),
        ]
        if not kept
    ]


def in_time(report: dict) -> list[tuple[bool, str]]:
    took = {step["name"]: step["seconds"] for step in report["steps"]}
    seconds, rlhf = sum(took.values()), took["judge"] + took["ppo"]
    print(
        f"stages {seconds:.1f} s, of these curate {took['corpus']:.1f} s, reward {took['judge']:.1f} s, rlhf-ppo "
        f"{took['ppo']:.1f} s and lora {took['pirate']:.1f} s"
    )
    slower = slowness()
    return [
        (took["corpus"] <= CURATE_SECONDS * slower, f"curate takes {CURATE_SECONDS} s at most"),
        (took["pirate"] <= LORA_SECONDS * slower, f"lora takes {LORA_SECONDS} s at most"),
        (seconds <= SECONDS * slower, f"the stages take {SECONDS} s at most"),
        (rlhf <= RLHF_SECONDS * slower, f"reward and rlhf-ppo take {RLHF_SECONDS} s at most"),
    ]


def in_gates(report: dict) -> list[tuple[bool, str]]:
    """Whether what checks a stage's output costs little next to what makes it."""
    kept = True
    for step in report["steps"]:
        took = step["metrics"].get("gates_seconds", 0.0)
        print(f"gates of {step['name']}: {took:.2f} s, {took / step['seconds']:.1%} of {step['seconds']:.1f} s")
        kept = kept and took <= max(GATES_S, GATES * step["seconds"])
    return [(kept, f"the gates take {GATES:.0%} of a stage's time at most, or {GATES_S} s")]


def in_quality(report: dict) -> list[tuple[bool, str]]:
    metrics = {step["name"]: step["metrics"] for step in report["steps"]}
    names = ("corpus", "scores", "base", "judge", "ppo", "pirate")
    corpus, scores, base, judge, ppo, pirate = (metrics[name] for name in names)
    follows = {model: scores[f"{model}.follows_share"] for model in ("base", "chat", "ppo")}
    happy = {model: scores[f"{model}.happy_share"] for model in ("chat", "ppo")}
    plain, told = max(scores[f"{model}.pirate_share"] for model in follows), scores["pirate.pirate_share"]
    print(f"planted faults: recall {corpus['planted_recall']:.2%}, precision {corpus['planted_precision']:.2%}")
    print(f"bits per byte {base['bits_per_byte_before']:.2f} -> {base['bits_per_byte']:.3f}")
    print("stories with both items, unseen pairs: " + " -> ".join(f"{share:.1%}" for share in follows.values()))
    print(f"the judge prefers the better story in {judge['held_out_accuracy']:.1%} of held-out pairs")
    print(f"happy endings {happy['chat']:.1%} -> {happy['ppo']:.1%} at a KL of {ppo['kl']:.2f} nats per story")
    print(
        f"talks like a pirate {plain:.1%} -> {told:.1%}, with both items {scores['pirate.follows_share']:.1%}, "
        f"by {pirate['trained_share']:.2%} of the parameters"
    )
    return [
        (corpus["planted_recall"] >= FOUND, f"{FOUND:.0%} of the planted faults are found"),
        (corpus["planted_precision"] >= FOUND, f"{FOUND:.0%} of what curate takes for a fault is one"),
        (follows["chat"] >= FOLLOWS, f"{FOLLOWS:.0%} of the stories follow the request"),
        (follows["chat"] > follows["base"], "fine-tuning helps"),
        (judge["held_out_accuracy"] >= PREFERS, f"the judge prefers the better story in {PREFERS:.0%} of the pairs"),
        (happy["ppo"] >= HAPPY, f"{HAPPY:.0%} of the stories end happily after PPO"),
        (follows["ppo"] >= FOLLOWS_AFTER_RLHF, f"{FOLLOWS_AFTER_RLHF:.0%} still follow the request after PPO"),
        (plain == 0, "nobody talks like a pirate before"),
        (told >= PIRATE, f"{PIRATE:.0%} of the stories are told by a pirate after lora"),
        (scores["pirate.follows_share"] >= FOLLOWS_AS_PIRATE, f"{FOLLOWS_AS_PIRATE:.0%} of them follow the request"),
        (pirate["trained_share"] <= TRAINED, f"{TRAINED:.0%} of the parameters are trained by lora at most"),
    ]


def old_skill(run: Path) -> list[tuple[bool, str]]:
    """Whether chat is what it was before an adapter was trained on it: the file, and what it answers, by peft alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    weights = run / "chat" / "model" / "model.safetensors"
    manifest = json.loads((run / "chat" / "manifest.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    ids = torch.arange(64)[None]
    with torch.no_grad():
        chat = AutoModelForCausalLM.from_pretrained(weights.parent).eval()
        alone = chat(ids).logits
        adapted = PeftModel.from_pretrained(chat, run / "pirate" / "adapter").eval()
        beside = adapted(ids).logits
        with adapted.disable_adapter():
            without = adapted(ids).logits
    return [
        (digest == manifest["outputs"]["model/model.safetensors"], "lora leaves the file of chat's weights as it was"),
        (bool((beside != alone).any()), "the adapter changes what chat answers"),
        (torch.equal(without, alone), "without the adapter, chat gives the logits that it gave before, bit for bit"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", type=Path)
    options = parser.parse_args()
    if options.check:
        problems = broken_promises(json.loads(options.check.read_text(encoding="utf-8")))
    else:
        with tempfile.TemporaryDirectory() as folder:
            report, wall, peak = run(folder)
            problems = broken_promises(report)
        print(f"wall {wall:.1f} s, peak memory {peak:,.0f} MB")
        problems += [] if peak <= PEAK_MB else [f"a peak of {PEAK_MB} MB at most"]
    for problem in problems:
        print(f"broken: {problem}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
