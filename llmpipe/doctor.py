"""doctor: what this machine has, and what a training run would meet on it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from llmpipe import console, machine

CONFLICTS = {
    "vllm": "it pins torch and transformers; give it an environment of its own, and name its address in the recipe",
    "deepspeed": "transformers imports it where it is there, and llmpipe does not use it",
}
VARIABLES = {
    "ACCELERATE_MIXED_PRECISION": "`precision:` of a stage decides; unset it",
    "PYTHONOPTIMIZE": "it takes checks out of the libraries; unset it",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "it is for looking for faults, and makes training slow",
    "CUDA_LAUNCH_BLOCKING": "it is for looking for faults, and makes training slow",
}
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
    facts |= _limits()
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
    found = [*_requirements(), *_environment()]
    if (limit := facts.get("limit of open files")) and int(limit.replace(",", "")) < 1024:
        found.append(f"a process may open {limit} files, and loading data takes more: ulimit -n 4096")
    if "limit of file size" in facts:
        found.append(
            f"a file may have {facts['limit of file size']} bytes, and a checkpoint be larger: ulimit -f unlimited"
        )
    if free < 2e9:
        found.append("less than 2 GB of disk are free here; a checkpoint takes three times a model's size")
    if not os.access(".", os.W_OK):
        found.append("this folder is not writable; runs go to ./runs unless --run names another place")
    if Path("/proc/driver/nvidia").exists() and "CPU" in facts["device"]:
        found.append("there is an NVIDIA driver, but torch sees no GPU: is this a CPU build of torch?")
    return found


def _limits() -> dict[str, str]:
    """Return what the system allows a process, where it allows less than there is."""
    if sys.platform == "win32":
        return {}
    import resource

    asked = {
        "open files": resource.RLIMIT_NOFILE,
        "processes": resource.RLIMIT_NPROC,
        "file size": resource.RLIMIT_FSIZE,
        "address space": resource.RLIMIT_AS,
    }
    soft = {name: resource.getrlimit(limit)[0] for name, limit in asked.items()}
    return {f"limit of {name}": f"{value:,}" for name, value in soft.items() if value != resource.RLIM_INFINITY}


def _requirements() -> Iterator[str]:
    """Yield what is missing of that which llmpipe needs, or is there in a version that it does not work with."""
    for line in requires("llmpipe") or ():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        has = _version(needed.name)
        if has == "missing":
            yield f"{needed.name} is not installed: pip install '{needed.name}{needed.specifier}'"
        elif not needed.specifier.contains(has, prereleases=True):
            yield f"{needed.name} {has} is installed: pip install '{needed.name}{needed.specifier}'"


def _environment() -> Iterator[str]:
    """Yield what is installed or set that is known to get into the way."""
    for name, why in CONFLICTS.items():
        if (has := _version(name)) != "missing":
            yield f"{name} {has} is installed: {why}"
    for name, why in VARIABLES.items():
        if os.environ.get(name):
            yield f"{name} is set: {why}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
