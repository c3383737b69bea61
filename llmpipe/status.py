"""How far the stages of a run are, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmpipe.artifact import read_manifest
from llmpipe.checkpoints import ASIDE, complete_checkpoints
from llmpipe.plan import Step

LOG_TAIL_BYTES = 4096


def rows(steps: Sequence[Step], run_dir: Path) -> list[dict[str, Any]]:
    """Describe every step for `--json` and the status table; the schema is public."""
    found = []
    for step in steps:
        manifest = read_manifest(run_dir / step.name)
        done = manifest is not None and step.action == "skip"
        found.append(
            {
                "name": step.name,
                "kind": step.record.kind,
                "state": "done" if done else {"resume": "interrupted", "rerun": "outdated"}.get(step.action, "to do"),
                "action": step.action,
                "reason": step.reason,
                "inputs": step.inputs,
                "changes": step.changes,
                "fingerprint": step.record.fingerprint,
                "seconds": manifest.seconds if manifest and done else None,
                "metrics": manifest.metrics if manifest and done else None,
            }
        )
    return found


def reasons(steps: Sequence[Step], run_dir: Path) -> dict[str, list[str]]:
    """Return what keeps each step from being done, or makes it so, by its name; for `llmpipe status --why`."""
    unfinished = {step.name for step in steps if step.action != "skip"}
    return {step.name: list(_of(step, run_dir / step.name, unfinished)) for step in steps}


def _of(step: Step, folder: Path, unfinished: set[str]) -> Iterator[str]:
    manifest = read_manifest(folder)
    if step.name not in unfinished and manifest is not None:
        yield f"settings, seed and inputs are those that it was made from ({manifest.fingerprint[:8]})"
        yield from _drift(manifest.versions)
        return
    yield from step.changes or [step.reason]
    yield from (f"waits for {name}" for name in step.inputs if name in unfinished)
    if whole := complete_checkpoints(folder / "checkpoints"):
        yield f"complete checkpoints: step {', '.join(str(number) for number, _ in whole)}"
    for path in sorted((folder / "checkpoints").glob(f"checkpoint-*{ASIDE}*")):
        yield f"{path.name} was found broken, and is not used"
    if manifest is None and (error := _last_error(folder / "log.txt")):
        yield f"its log ends with {error}"


def _drift(versions: dict[str, str]) -> Iterator[str]:
    """Yield the libraries that are newer or older than those that the output was made with."""
    for name, was in versions.items():
        try:
            now = version(name)
        except PackageNotFoundError:
            continue  # Python itself, for one
        if now != was:
            yield f"made with {name} {was}, and this is {now}: a rerun may differ in the last digits"


def _last_error(path: Path) -> str | None:
    """Return the last line of a log that ends with a traceback."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").rstrip().splitlines()
    return lines[-1] if lines and any(line.startswith("Traceback ") for line in lines) else None
