"""The estimates of a plan for people: one line a stage, a sum, and a warning where memory will not do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from llmpipe import console, estimate, machine
from llmpipe.estimate import Estimate
from llmpipe.forecast import forecast
from llmpipe.plan import Step

Writer = Callable[[float], str]
HEADER = ("", "parameters", "tokens", "FLOPs", "memory", "disk", "time")


def estimates(steps: Sequence[Step], run_dir: Path) -> dict[str, Estimate]:
    """Estimate the stages that are to run: by what was measured, else by arithmetic."""
    records = [step.record for step in steps]
    found = forecast(records, run_dir) | estimate.calibrated(records, estimate.read(run_dir))
    return {step.name: found[step.name] for step in steps if step.name in found and step.action not in ("skip", "wait")}


def show(found: Mapping[str, Estimate], recipe: str) -> None:
    """Print the estimates."""
    if not found:
        return
    console.say("")
    rows = [row for name, one in found.items() if (row := (name, *_cells(one)))[1:] != ("",) * 6]
    if rows:
        console.show(console.table(rows, header=HEADER, right=range(1, 7)))
        console.say("")
    for line in lines(found, recipe):
        console.say(f"  {line}")
    for line in warnings(found):
        console.say(f"  {line}", style="yellow")


def _cells(one: Estimate) -> tuple[str, ...]:
    """Write an estimate in cells; what was not measured is marked by the sign for about."""
    about = "" if one.calibrated else "~"
    return (
        "" if one.parameters is None else console.count(one.parameters),
        "" if one.tokens is None else console.count(one.tokens),
        "" if one.flops is None else f"{one.flops:.1e}".replace("e+", "e"),
        "" if one.peak_memory_mb is None else about + memory(one.peak_memory_mb),
        "" if one.disk_bytes is None else about + memory(one.disk_bytes / 2**20),
        "" if one.seconds is None else console.seconds(one.seconds),
    )


def memory(megabytes: float) -> str:
    """Write an amount of memory or disk: 0.4 MB, 850 MB, 3.3 GB."""
    if megabytes >= 1000:
        return f"{megabytes / 2**10:.1f} GB"
    return f"{megabytes:.0f} MB" if megabytes >= 10 else f"{megabytes:.1f} MB"


def lines(found: Mapping[str, Estimate], recipe: str) -> Iterator[str]:
    """Yield what is to be said below the table."""
    measured = [one for one in found.values() if one.calibrated]
    if measured:
        total = sum(one.seconds or 0.0 for one in measured)
        peak = max(one.peak_memory_mb or 0.0 for one in measured)
        disk = sum(one.disk_bytes or 0 for one in measured) / 2**20
        which = "in all" if len(measured) == len(found) else "those that were measured"
        yield f"{which}: about {console.seconds(total)}, {memory(peak)} of memory, {memory(disk)} of disk"
    for name, one in found.items():
        if one.problem:
            yield f"{name} could not be calibrated: {one.problem}"
    if not measured:
        yield f"how long it takes: llmpipe plan {recipe} --calibrate runs a few steps of each stage"


def warnings(found: Mapping[str, Estimate]) -> Iterator[str]:
    """Yield a warning for each stage that needs more memory than this machine has."""
    has = machine.memory_mb()
    for name, one in found.items():
        if has and one.peak_memory_mb and one.peak_memory_mb > has and one.peak_gpu_memory_mb is None:
            needs = f"{name} needs about {memory(one.peak_memory_mb)} of memory, and this machine has {memory(has)}"
            yield f"{needs}: lower batch_tokens, micro_batch_tokens or trainer.per_device_train_batch_size"
