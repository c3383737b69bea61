"""`llmpipe plan --calibrate`: runs each stage for real, a few steps far, in a folder that is thrown away.

Stages that are done are used as they are. Workers do the work, as in a run, so that this process stays light and the
stages find the memory and the imports that they will find in a run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmpipe import artifact, console, edges, estimate, packages, runner, stages
from llmpipe.context import REHEARSAL
from llmpipe.errors import LlmpipeError, StoppedError
from llmpipe.plan import Step, make_plan
from llmpipe.recipe import Recipe


def calibrate(recipe: Recipe, run_dir: Path, options: runner.Options) -> None:
    """Measure what the stages cost that are to run and were not measured yet; writes `estimate.json`.

    Raises:
        UsageError: a stage would run the user's own code, which was not allowed, or needs a package that is missing.
        StoppedError: a signal asked for it; what was measured until then is kept.
    """
    runner.open_run(run_dir)
    with runner.locked(run_dir):
        steps = make_plan(recipe, run_dir)
        runner.refuse_code(steps, options)
        packages.refuse_missing(steps)
        known = estimate.read(run_dir)
        needed = _needed(steps, known)
        if not needed:
            return
        console.say(f"calibrating {', '.join(needed)}: a few steps of each, for real, in a folder that is thrown away")
        with tempfile.TemporaryDirectory(prefix="llmpipe-", ignore_cleanup_errors=True) as folder:
            scratch = Path(folder)
            _furnish(scratch, run_dir, steps)
            for step in make_plan(recipe, scratch):
                if step.name in needed:
                    measured = _rehearse(step, scratch, options)
                    known[step.name] = {"key": estimate.keys(s.record for s in steps)[step.name], **measured}
                    estimate.write(run_dir, known)
        console.say("")


def _needed(steps: Sequence[Step], known: dict[str, Any]) -> list[str]:
    """Name the stages to measure: those without costs, and those that they read and that are not done."""
    wanted = estimate.keys(step.record for step in steps)
    needed: set[str] = set()
    for step in reversed(steps):
        settings = stages.load(step.record.kind).Settings.model_validate(step.record.settings)
        costs = known.get(step.name, {})
        measured = costs.get("key") == wanted[step.name] and "problem" not in costs
        if step.action != "skip" and (not measured or step.name in needed):
            needed |= {step.name, *edges.upstream(settings)}
    return [step.name for step in steps if step.name in needed and step.action != "skip"]


def _furnish(scratch: Path, run_dir: Path, steps: Sequence[Step]) -> None:
    """Put into the folder what a run would find: stages that are done, unpacked models, locked commits."""
    artifact.write_json(scratch / REHEARSAL, {})
    for name in (*(step.name for step in steps if step.action == "skip"), ".bases"):
        if (run_dir / name).is_dir():
            (scratch / name).symlink_to((run_dir / name).absolute(), target_is_directory=True)
    for name in ("hub.json", ".hashes.json"):
        if (run_dir / name).is_file():
            shutil.copyfile(run_dir / name, scratch / name)


def _rehearse(step: Step, scratch: Path, options: runner.Options) -> dict[str, Any]:
    """Run a stage far enough to know what it costs; one that fails says why."""
    try:
        runner.run([replace(step, is_chosen=False)], scratch, options)  # no bound is for a model hardly trained
    except StoppedError:
        raise
    except LlmpipeError as failure:
        problem = failure.problems[0].message
        console.say(f"  {step.name}  could not be calibrated: {problem}", style="yellow")
        return {"problem": problem}
    folder = scratch / step.name
    manifest = artifact.read_manifest(folder)
    assert manifest is not None
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != REHEARSAL)
    peaks = {key: value for key, value in manifest.metrics.items() if key.startswith("peak_")}
    return {
        "seconds": manifest.seconds,
        "output_bytes": sum(path.stat().st_size for path in files if "checkpoints" not in path.parts),
        "costs": artifact.read_json(folder / REHEARSAL),
        **peaks,
    }
