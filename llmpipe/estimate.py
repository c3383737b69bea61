"""What the stages of a run will take: parameters, tokens, FLOPs, memory, time, disk.

`llmpipe plan --calibrate` has each stage show what it costs on this machine and keeps that in `estimate.json` of the
run directory, by what the costs depend on: other settings, data or machines have costs of their own, but another number
of steps is only multiplied. Without it, `forecast` says what arithmetic can; it cannot say how long something takes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmpipe.artifact import StepRecord, read_json, write_json
from llmpipe.machine import cores
from llmpipe.settings import COSMETIC

FILE = "estimate.json"
MULTIPLIED = COSMETIC | {"max_steps", "num_train_epochs", "eval_steps", "save_steps", "learning_rate", "warmup_steps"}
"""Options under `trainer:` that do not change what a step, an evaluation or a checkpoint costs."""
EVALUATIONS = 10  # as training/arguments.py has it where trainer.eval_steps is left out


@dataclass(frozen=True)
class Estimate:
    """What a stage will take; None where it cannot be told."""

    parameters: int | None = None
    tokens: int | None = None
    flops: float | None = None
    """6 for each parameter and token, of which 2 are the forward pass; fewer where some parameters are not trained."""
    peak_memory_mb: float | None = None
    peak_gpu_memory_mb: float | None = None
    seconds: float | None = None
    disk_bytes: int | None = None
    calibrated: bool = False
    problem: str | None = None
    """Why the stage could not be calibrated."""


def read(run_dir: Path) -> dict[str, Any]:
    """Return the costs that were measured for a run directory, by stage."""
    found = read_json(run_dir / FILE)
    stages = found.get("stages") if isinstance(found, dict) else None
    return stages if isinstance(stages, dict) else {}


def write(run_dir: Path, stages: Mapping[str, Any]) -> None:
    """Keep what was measured."""
    write_json(run_dir / FILE, {"schema": 1, "machine": machine(), "stages": stages})


def machine() -> dict[str, Any]:
    """Describe what costs depend on beside the recipe."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    return {
        "processor": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
        or platform.machine(),
        "cores": cores(),
        "torch": torch,
        **{name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")},
    }


def keys(records: Iterable[StepRecord]) -> dict[str, str]:
    """Return for each stage what its costs go by; stages come after those that they read."""
    here = machine()
    found: dict[str, str] = {}
    for record in records:
        settings = record.settings | {"trainer": _kept(record.settings.get("trainer") or {})}
        named = {entry.field for entry in record.inputs}
        inputs = [[entry.field, found.get(entry.source.get("stage", ""), entry.identity)] for entry in record.inputs]
        identity = {
            "kind": record.kind,
            "version": record.stage_version,
            "machine": here,
            "settings": {key: value for key, value in settings.items() if key not in named},
            "inputs": inputs,
        }
        found[record.name] = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return found


def _kept(trainer: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in trainer.items() if key not in MULTIPLIED}


def calibrated(records: Sequence[StepRecord], measured: Mapping[str, Any]) -> dict[str, Estimate]:
    """Estimate the stages whose costs were measured; the others are left out."""
    wanted, found = keys(records), {}
    for record in records:
        costs = measured.get(record.name)
        if costs and costs.get("key") == wanted[record.name]:
            found[record.name] = of_costs(record.settings, costs)
    return found


def of_costs(settings: Mapping[str, Any], measured: Mapping[str, Any]) -> Estimate:
    """Multiply what was measured by how often it will be done."""
    if measured.get("problem"):
        return Estimate(problem=measured["problem"])
    plain = Estimate(
        peak_memory_mb=measured["peak_memory_mb"],
        peak_gpu_memory_mb=measured.get("peak_gpu_memory_mb"),
        seconds=measured["seconds"],
        disk_bytes=measured["output_bytes"],
        calibrated=True,
    )
    costs = measured.get("costs")
    if not costs:  # a stage that trains nothing was run whole
        return plain
    steps, evaluations, saves = counts(settings, costs)
    once = measured["seconds"] - costs["seconds_watched"]
    step = costs["passes"] * costs["seconds_pass"] + costs["seconds_optimizer"]
    tokens = round(steps * costs["passes"] * costs["tokens_per_pass"])
    kept = 2 if settings.get("keep") == "best" and evaluations > 1 and saves > 1 else min(saves, 1)
    return replace(
        plain,
        parameters=costs["parameters"],
        tokens=tokens,
        flops=flops(settings, costs["parameters"], costs["trained_parameters"], tokens),
        seconds=once
        + costs["seconds_warm_up"]
        + steps * step
        + (evaluations + bool(evaluations and costs["final_evaluation"])) * costs["seconds_evaluation"]
        + saves * costs["seconds_save"],
        disk_bytes=measured["output_bytes"] + kept * costs["checkpoint_bytes"],
    )


def counts(settings: Mapping[str, Any], costs: Mapping[str, Any]) -> tuple[int, int, int]:
    """Count steps, evaluations (the one of the model as it comes included) and checkpoints as the stage will."""
    trainer = settings.get("trainer") or {}
    if costs["steps_per_epoch"] is None:  # rollouts are a setting of the stage, and part of its key
        steps, eval_steps = costs["steps"], costs["eval_steps"]
        save_steps = costs["save_steps"]
    else:
        epochs = float(trainer.get("num_train_epochs", costs["epochs"]))
        limit = trainer.get("max_steps", -1)
        steps = limit if limit > 0 else math.ceil(costs["steps_per_epoch"] * epochs)
        eval_steps = trainer.get("eval_steps") or max(1, steps // EVALUATIONS)
        save_steps = trainer.get("save_steps") or eval_steps
    evaluations = 0 if costs["eval_steps"] is None else 1 + _times(steps, eval_steps)
    saves = 0 if costs["save_steps"] is None else _times(steps, save_steps)
    return steps, evaluations, saves


def _times(steps: int, every: float) -> int:
    """Count how often something is done, the end included; `every` may be a share of the steps, as in Trainer."""
    return math.ceil(steps / max(1, math.ceil(steps * every) if every < 1 else every))


def flops(settings: Mapping[str, Any], parameters: int, trained: int, tokens: int) -> float:
    """Count floating-point operations of training on tokens (Kaplan 2020, arXiv:2001.08361, table 1).

    2 for each parameter and token in the forward pass, 2 for the gradients of what flows through, 2 for those of the
    parameters that are trained. Rollouts are sampled, scored and read by policy, value and reference as well.
    """
    learned = (4 * parameters + 2 * trained) * tokens
    reads = 5 * 2 * parameters * tokens / settings["epochs"] if "rollouts" in settings else 0
    return float(learned + reads)


def as_json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """Describe estimates for `plan --json`; the schema is public."""
    return {name: asdict(estimate) for name, estimate in estimates.items()}
