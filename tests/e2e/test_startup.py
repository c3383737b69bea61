"""Looking is quick, and torch is imported once for all stages of a run, not once for each."""

import json
import time

import pytest

from .conftest import environment, slowness


@pytest.mark.alone
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["plan", "tiny.yaml"], ["status", "runs/tiny"], ["run", "tiny.yaml"]],
    ids=" ".join,
)
def test_looking_takes_no_time(llmpipe, run_dir, arguments):
    """Nor does a run of which everything is done."""
    took = []
    for _ in range(3):
        slower = slowness()
        begun = time.monotonic()
        llmpipe(*arguments, env=environment())
        took.append((time.monotonic() - begun) / slower)
    assert min(took) < 1.5


def test_only_the_first_stage_waits_for_imports(finished):
    """Between step.json and manifest.json lie the start of a worker, and the seconds that the stage says it took."""
    run_dir, _ = finished
    ready = {}
    for name in ("tok", "base", "chat", "scores"):
        manifest = run_dir / name / "manifest.json"
        passed = manifest.stat().st_mtime - (run_dir / name / "step.json").stat().st_mtime
        ready[name] = passed - json.loads(manifest.read_text(encoding="utf-8"))["seconds"]
    imports = ready.pop("tok")
    assert imports > 1, "this includes the import of torch"
    assert max(ready.values()) < imports / 2, ready
