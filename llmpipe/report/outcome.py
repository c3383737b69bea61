"""What was estimated beside what a run then took."""

from __future__ import annotations

from llmpipe import console, estimate, outlook
from llmpipe.artifact import Manifest
from llmpipe.estimate import Estimate
from llmpipe.report.collect import Run

HEADER = ("stage", "time", "estimated", "off by", "peak memory", "estimated", "off by")


def compared(run: Run) -> list[tuple[Manifest, Estimate]]:
    """Return the stages that are done and were calibrated, with what their settings come to."""
    records = [stage.step for stage in run.stages if stage.step]
    found = estimate.calibrated(records, estimate.read(run.folder))
    return [(manifest, found[name]) for name, manifest in run.done.items() if name in found and found[name].calibrated]


def rows(run: Run) -> list[tuple[str, ...]]:
    """Lay out estimate and outcome: a row a stage, and their sum; none where nothing was calibrated."""
    both = compared(run)
    found: list[tuple[str, ...]] = [
        (
            manifest.name,
            *_pair(manifest.seconds, one.seconds, console.seconds),
            *_pair(manifest.metrics.get("peak_memory_mb"), one.peak_memory_mb, outlook.memory),
        )
        for manifest, one in both
    ]
    if len(found) > 1:
        took = sum(manifest.seconds for manifest, _ in both)
        peak = max(manifest.metrics.get("peak_memory_mb") or 0.0 for manifest, _ in both)
        expected = sum(one.seconds or 0.0 for _, one in both), max(one.peak_memory_mb or 0.0 for _, one in both)
        sums = _pair(took, expected[0], console.seconds), _pair(peak, expected[1], outlook.memory)
        found.append(("in all", *sums[0], *sums[1]))
    return found


def _pair(took: float | None, expected: float | None, write: outlook.Writer) -> tuple[str, str, str]:
    if not took or expected is None:
        return "" if took is None else write(took), "", ""
    return write(took), write(expected), f"{expected / took - 1:+.0%}"
