"""Run directories without training: recipe, records and metrics as a run would have written them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpipe.artifact import Gate, Input, Manifest, StepRecord, write_json


@dataclass
class Made:
    """A stage: what it reads (field, stage), its settings, and what came of it."""

    name: str
    kind: str = "sft"
    reads: Sequence[tuple[str, str]] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    logged: Sequence[dict[str, Any]] = ()
    gates: Sequence[Gate] = ()
    files: dict[str, Any] = field(default_factory=dict)
    """JSON by name."""
    inputs: Sequence[Input] = ()
    seed: int = 1
    done: bool = True
    begun: bool = True


def make_run(folder: Path, stages: Sequence[Made], *, comment: str = "") -> Path:
    """Write a run directory."""
    folder.mkdir(parents=True)
    lines = [f"  {stage.name}: {{kind: {stage.kind}}}" for stage in stages]
    recipe = "\n".join([f"# {comment}", "name: x", "stages:", *lines, ""])
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    for stage in stages:
        if stage.begun:
            _write(folder / stage.name, stage)
    return folder


def _write(folder: Path, stage: Made) -> None:
    folder.mkdir()
    above = [Input(field=name, source={"stage": other, "weight": 1.0}, identity=other) for name, other in stage.reads]
    record: dict[str, Any] = {
        "name": stage.name,
        "kind": stage.kind,
        "stage_version": 1,
        "fingerprint": f"{stage.name}-{stage.settings}",
        "seed": stage.seed,
        "settings": stage.settings,
        "inputs": [*above, *stage.inputs],
    }
    write_json(folder / "step.json", StepRecord(**record))
    lines = "".join(json.dumps(line) + "\n" for line in stage.logged)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    for name, content in stage.files.items():
        write_json(folder / name, content)
    if stage.done:
        rest: dict[str, Any] = {"outputs": {}, "metrics": stage.metrics, "gates": list(stage.gates)}
        rest |= {"versions": {"llmpipe": "0.1.0", "torch": "2.13"}, "device": "cpu, 1 threads"}
        rest |= {"started": "2026-01-01T00:00:00+00:00", "seconds": 61.0}
        write_json(folder / "manifest.json", Manifest(**record, **rest))
