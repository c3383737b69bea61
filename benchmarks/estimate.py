"""What `llmpipe plan --calibrate` says a recipe will take, and what it then takes: time and peak memory by stage.

    python benchmarks/estimate.py quickstart shakespeare.yaml smollm.yaml [--runs DIR]

Each recipe is planned and run in a folder of its own, on a machine that should have nothing else to do. Exits 1 when
the time of all stages of a recipe is off by more than 25 %, or its peak memory by more than 15 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TIME, MEMORY = 0.25, 0.15


def llmpipe(*arguments: str) -> tuple[dict[str, Any], float]:
    """Run the command; returns its JSON and wall seconds."""
    begun = time.perf_counter()
    done = subprocess.run(["llmpipe", *arguments, "--json"], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"llmpipe {' '.join(arguments)} exited {done.returncode}")
    return json.loads(done.stdout), time.perf_counter() - begun


def compare(recipe: str, run: Path) -> bool:
    """Plan, run, print both side by side; returns whether the estimate was near enough."""
    plan, calibrating = llmpipe("plan", recipe, "--calibrate", "--run", str(run))
    ran, wall = llmpipe("run", recipe, "--run", str(run))
    print(f"\n{recipe}: calibrated in {calibrating:.0f} s, run in {wall:.0f} s")
    print(f"{'stage':<12}{'estimate s':>12}{'took s':>10}{'ratio':>8}{'estimate MB':>14}{'peak MB':>10}{'ratio':>8}")
    rows = []
    for step in ran["steps"]:
        expected = plan["estimates"].get(step["name"]) or {}
        if not expected.get("calibrated"):
            sys.exit(f"{step['name']} was not calibrated: {expected.get('problem')}")
        peak = step["metrics"]["peak_memory_mb"]
        rows.append((step["name"], expected["seconds"], step["seconds"], expected["peak_memory_mb"], peak))
    _, *numbers = zip(*rows, strict=True)
    whole = ("in all", sum(numbers[0]), sum(numbers[1]), max(numbers[2]), max(numbers[3]))
    for name, seconds, took, memory, peak in [*rows, whole]:
        ratios = seconds / max(took, 0.01), memory / peak
        print(
            f"{name:<12}{seconds:>12.1f}{took:>10.1f}{ratios[0]:>8.2f}{memory:>14,.0f}{peak:>10,.0f}{ratios[1]:>8.2f}"
        )
    return abs(whole[1] / whole[2] - 1) <= TIME and abs(whole[3] / whole[4] - 1) <= MEMORY


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--runs", type=Path, help="keep the run directories here")
    options = parser.parse_args()
    near = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.runs or Path(temporary)
        for recipe in options.recipes:
            near.append(compare(recipe, folder / Path(recipe).stem))
    sys.exit(not all(near))


if __name__ == "__main__":
    main()
