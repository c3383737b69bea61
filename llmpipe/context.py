"""What a stage's `run` is given, and what it gives back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmpipe.artifact import OUTPUT_FOLDERS, Gate, Manifest, StepRecord, read_manifest, write_text
from llmpipe.errors import StageError
from llmpipe.settings import AnySource, Artifact, GgufSource, HubSource, PathSource, StageSource

Event = dict[str, Any]
"""What a worker tells its runner: {"event": "log" | "say" | "explain" | "done" | "error", ...}."""

REHEARSAL = "rehearsal.json"
"""In a run directory: its stages only show what they cost. In the folder of one of them: what that is."""


@dataclass(frozen=True)
class Result:
    """What a stage made.

    `outputs`: names in the stage's folder. `metrics`: numbers for the manifest; where a metric `x` has a twin
    `x_before`, the summary shows what the stage changed.
    """

    outputs: list[str]
    metrics: dict[str, Any]
    gates: list[Gate] = field(default_factory=list)


@dataclass
class Context:
    """A step's surroundings. Stages write below `dir` and nowhere else."""

    run_dir: Path
    step: StepRecord
    emit: Callable[[Event], None]
    stop_requested: Callable[[], Literal["interrupt", "terminate"] | None] = lambda: None
    rank: int = 0
    started: float = field(default_factory=time.monotonic)
    gates_s: float = 0.0
    """What the gates have taken so far."""

    @property
    def dir(self) -> Path:
        """The stage's own folder."""
        return self.run_dir / self.step.name

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.step.seed

    @property
    def is_rehearsal(self) -> bool:
        """Whether the stage is only to show what it costs: a few steps of it, by `plan --calibrate`."""
        return (self.run_dir / REHEARSAL).exists()

    @property
    def checkpoints(self) -> Path:
        """Where a training stage keeps its checkpoints."""
        return self.dir / "checkpoints"

    def log(self, metrics: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl (with `step` and `time_s`) and show it in the progress line."""
        if self.rank:
            return
        line = {**metrics, "time_s": round(time.monotonic() - self.started, 3)}
        with (self.dir / "metrics.jsonl").open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")
        self.emit({"event": "log", **line})

    def rewind(self, step: int) -> None:
        """Drop the lines of metrics.jsonl after `step`: a resumed run writes them again."""
        path = self.dir / "metrics.jsonl"
        if self.rank or not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line).get("step", 0) <= step]
        write_text(path, "".join(kept))
        if kept:
            self.started = time.monotonic() - json.loads(kept[-1])["time_s"]  # the clock goes on, too

    def progress(self, **numbers: Any) -> None:
        """Update the progress line only: step, max_steps, loss, tokens_per_s."""
        if not self.rank:
            self.emit({"event": "progress", **numbers})

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Time what gates take: it is no part of the training."""
        begun = time.monotonic()
        yield
        self.gates_s += time.monotonic() - begun

    def say(self, text: str) -> None:
        """Tell the user something that matters: rows that were dropped, a template that was set."""
        if not self.rank:
            self.emit({"event": "say", "text": text})

    def explain(self, text: str) -> None:
        """Say what the stage is for, with this run's numbers; shown with `--explain`."""
        if not self.rank:
            self.emit({"event": "explain", "text": text})

    def folder_of(self, source: AnySource) -> str:
        """Turn a model or tokenizer source into what `from_pretrained` takes: a folder, or a hub id.

        A GGUF file is unpacked to a folder by the first call of a run.
        """
        if isinstance(source, StageSource):
            folder = self.run_dir / source.stage
            manifest = read_manifest(folder)
            if manifest is None:
                raise StageError(f"stage {source.stage} is not finished", hint=f"llmpipe status {self.run_dir}")
            return str(folder / next(name for name in ("model", "adapter", "tokenizer") if (folder / name).is_dir()))
        if isinstance(source, PathSource):
            return source.path
        if isinstance(source, HubSource):
            return source.hub
        if isinstance(source, GgufSource):
            from llmpipe.training import bases

            return str(bases.unpacked(source, self))
        raise StageError(f"{source} is not a model")

    def manifest_of(self, stage: str) -> Manifest:
        """Read the manifest of an input stage."""
        manifest = read_manifest(self.run_dir / stage)
        if manifest is None:
            raise StageError(f"stage {stage} is not finished", hint=f"llmpipe status {self.run_dir}")
        return manifest

    def output(self, artifact: Artifact) -> Path:
        """Where an artifact of this stage belongs."""
        return self.dir / OUTPUT_FOLDERS[artifact]
