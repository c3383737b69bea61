"""doctor: what this machine has, and what a training run would meet on it."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmpipe import console, machine

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "pydantic", "typer", "rich")


def examine(*, as_json: bool) -> None:
    """Print the findings; problems come first and say what to do."""
    found = findings()
    if as_json:
        console.as_json(found)
        return
    cells = [(name, str(value)) for name, value in found["facts"].items()]
    console.show(console.table(cells), to_stdout=True, indent=0)
    for problem in found["problems"]:
        console.say(f"! {problem}", style="yellow")
    if not found["problems"]:
        console.say("nothing is in the way", style="green")


def findings() -> dict[str, Any]:
    """Return {"facts": ..., "problems": [...]}; imports torch to measure number formats."""
    import torch

    from llmpipe.training.precision import choose, matmul_gflops

    disk = shutil.disk_usage(".")
    facts: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform(terse=True)}
    facts |= {name: _version(name) for name in PACKAGES}
    facts["cores"] = machine.cores()
    facts["memory"] = "unknown" if (has := machine.memory_mb()) is None else f"{has * 2**20 / 1e9:.1f} GB"
    facts["disk free here"] = f"{disk.free / 1e9:.1f} GB"
    facts["device"] = _device()
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        facts[f"{name} matmul"] = f"{matmul_gflops(dtype):,.0f} GFLOP/s"
    facts["precision auto"] = choose("auto", tokens=512, width=1024)
    return {"facts": facts, "problems": _problems(facts, disk.free)}


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return "Apple GPU" if torch.backends.mps.is_available() else f"CPU, {torch.get_num_threads()} threads"


def _problems(facts: dict[str, Any], free: int) -> list[str]:
    found = [f"{name} is not installed: pip install {name}" for name in PACKAGES if facts[name] == "missing"]
    if free < 2e9:
        found.append("less than 2 GB of disk are free here; a checkpoint takes three times a model's size")
    if not os.access(".", os.W_OK):
        found.append("this folder is not writable; runs go to ./runs unless --run names another place")
    if Path("/proc/driver/nvidia").exists() and "CPU" in facts["device"]:
        found.append("there is an NVIDIA driver, but torch sees no GPU: is this a CPU build of torch?")
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
