"""What a run directory holds, read once for everything that the report shows. Nothing in it is changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpipe import yaml_tree
from llmpipe.artifact import Manifest, StepRecord, read_json, read_manifest, read_metrics, read_step
from llmpipe.errors import UsageError


@dataclass(frozen=True)
class Stage:
    """A stage of the recipe, as far as it is."""

    name: str
    kind: str
    step: StepRecord | None
    """What was asked for; None where the stage was not begun."""
    manifest: Manifest | None
    """What was made; None where the stage is not done."""
    logged: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    scores: dict[str, Any]
    samples: list[dict[str, Any]]
    curation: dict[str, Any]
    tokens: dict[str, Any]
    """How a tokenizer cuts its text: its report.json."""
    picture: Path | None
    """The one that the stage drew itself."""
    fail_if: dict[str, str] = field(default_factory=dict)
    """The bounds that the run's recipe sets."""

    @property
    def state(self) -> str:
        """How far it is."""
        return "done" if self.manifest else "not finished" if self.step else "not begun"

    @property
    def above(self) -> list[str]:
        """The stages that it reads, each once."""
        sources = [entry.source for entry in self.step.inputs] if self.step else []
        return list(dict.fromkeys(source["stage"] for source in sources if "stage" in source))


@dataclass(frozen=True)
class Run:
    """A run directory; its stages in the order of the recipe."""

    folder: Path
    name: str
    recipe: str
    stages: list[Stage]

    @property
    def done(self) -> dict[str, Manifest]:
        """The manifests of the stages that are done, by name."""
        return {stage.name: stage.manifest for stage in self.stages if stage.manifest}


def collect(folder: Path) -> Run:
    """Read a run directory.

    Raises:
        UsageError: the folder is none, or nothing was begun in it.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise UsageError(f"{folder} is no run directory: it has no recipe.yaml", hint="llmpipe run RECIPE makes one")
    data = yaml_tree.read(path).data
    written: dict[str, Any] = data.get("stages", {}) if isinstance(data, dict) else {}
    stages = [_stage(folder / name, raw) for name, raw in written.items() if isinstance(raw, dict)]
    if not any(stage.step for stage in stages):
        raise UsageError(f"nothing was begun in {folder} yet", hint=f"llmpipe run {folder}")
    return Run(folder, folder.absolute().name, path.read_text(encoding="utf-8"), stages)


def _stage(folder: Path, raw: dict[str, Any]) -> Stage:
    step, manifest = read_step(folder), read_manifest(folder)
    return Stage(
        name=folder.name,
        kind=str(raw.get("kind")),
        step=step,
        manifest=manifest,
        logged=read_metrics(folder),
        scores=read_json(folder / "scores.json") or {} if manifest else {},
        samples=(read_json(folder / "samples.json") or {}).get("samples", []) if manifest else [],
        curation=read_json(folder / "curation.json") or {} if manifest else {},
        tokens=read_json(folder / "report.json") or {} if manifest and raw.get("kind") == "tokenizer" else {},
        picture=next((path for path in sorted(folder.glob("*.svg"))), None) if manifest else None,
        fail_if=raw.get("fail_if") or {},
    )
