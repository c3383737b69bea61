"""What a run's stages logged, as lines to read; and on, as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpipe import artifact, console
from llmpipe.errors import UsageError, did_you_mean

POLL_S = 0.3
NAMES = {
    "loss": "loss",
    "held_out_loss": "held-out loss",
    "held_out_perplexity": "held-out perplexity",
    "held_out_accuracy": "held-out accuracy",
    "reward": "reward",
    "held_out_reward": "held-out reward",
    "kl": "KL",
    "held_out_kl": "held-out KL",
    "accuracy": "accuracy",
    "length": "length",
    "entropy": "entropy",
    "grad_norm": "gradient norm",
}
"""What is shown of a line, in this order; metrics.jsonl holds the rest."""


@dataclass
class _Tail:
    """A file that grows: what of it has been read."""

    path: Path
    read: int = 0
    file: int = 0
    """Its inode: a stage that runs again writes a new one."""

    def lines(self) -> Iterator[str]:
        """Yield the whole lines that are new."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            inode = self.path.stat().st_ino
            if inode != self.file:
                self.read, self.file = 0, inode
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # its writer is not through with it
                self.read += len(line)
                yield line.decode("utf-8", errors="replace").rstrip("\r\n")


def show(run_dir: Path, stage: str | None, *, follow: bool, raw: bool, as_json: bool) -> None:
    """Print what was logged; with `follow` on to the end of the stage, or of the run where no stage is named.

    Raises:
        UsageError: there is no such run or stage, or the flags do not go together.
    """
    names = _stages(run_dir, stage)
    if raw and stage is None:
        raise UsageError("--raw shows the log.txt of one stage", hint=f"llmpipe logs {run_dir} {names[-1]} --raw")
    if as_json:
        if follow or raw:
            raise UsageError("--json prints one document, and goes with neither --follow nor --raw")
        logged = {name: artifact.read_metrics(run_dir / name) for name in names}
        console.as_json({"run": str(run_dir), "stages": logged})
        return
    tails: dict[str, _Tail] = {}
    width = max(map(len, names))
    while True:
        over = not follow or _is_over(run_dir, stage)  # asked before the look, which then misses nothing
        for name in _stages(run_dir, stage):
            tail = tails.setdefault(name, _Tail(run_dir / name / ("log.txt" if raw else "metrics.jsonl")))
            for line in tail.lines():
                console.data(console.clean(line) if raw else f"{name:<{width}}  {readable(json.loads(line))}")
        if over:
            return
        time.sleep(POLL_S)


def _stages(run_dir: Path, stage: str | None) -> list[str]:
    """Return the stages that were begun, in the order in which they were, or the one that is asked for."""
    begun = sorted(run_dir.glob("*/step.json"), key=lambda path: (path.stat().st_mtime_ns, path))
    names = [path.parent.name for path in begun]
    if not names:
        raise UsageError(f"nothing was begun in {run_dir} yet", hint="llmpipe run RECIPE --run DIR")
    if stage is not None and stage not in names:
        near = did_you_mean(stage, names)
        raise UsageError(f"no stage '{stage}' was begun in {run_dir}{near}", hint=f"stages: {', '.join(names)}")
    return names if stage is None else [stage]


def _is_over(run_dir: Path, stage: str | None) -> bool:
    """Tell whether nothing more will be logged."""
    if stage is not None and (run_dir / stage / "manifest.json").is_file():
        return True
    return not (run_dir / ".lock").exists() or not artifact.is_locked(run_dir)


def readable(entry: dict[str, Any]) -> str:
    """Write a line of metrics.jsonl for people: when, how far, what is best known."""
    parts = [
        f"{console.seconds(entry.get('time_s', 0)):>8}",
        f"step {entry.get('step', '?')}/{entry.get('max_steps', '?')}",
    ]
    parts += [
        f"{name} {console.number(entry[key], key=key)}" for key, name in NAMES.items() if entry.get(key) is not None
    ]
    if "learning_rate" in entry:
        parts.append(f"learning rate {entry['learning_rate']:.2e}")
    if "tokens_per_s" in entry:
        parts.append(f"{console.count(entry['tokens_per_s'])} tok/s")
    return "  ".join(parts)
