"""Two runs side by side: which settings differ, and what came out otherwise.

What differs by nature is left out: where files lie, how long things took, how fast they went.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpipe import console
from llmpipe.artifact import Manifest, StepRecord, read_manifest, read_step
from llmpipe.changes import Change, changes, flat
from llmpipe.errors import UsageError

BY_NATURE = ("seconds", "per_s", "time_s", "memory")
"""Parts of the names of metrics that no two runs have in common."""


@dataclass(frozen=True)
class Delta:
    """A metric that differs; None where only one of the runs has it."""

    stage: str
    metric: str
    before: Any
    after: Any

    @property
    def difference(self) -> float | None:
        """By how much a number moved; None for what is no number."""
        values = (self.before, self.after)
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return None
        return float(self.after - self.before)


@dataclass
class Difference:
    """What differs between two runs."""

    settings: list[tuple[str, Change]] = field(default_factory=list)
    """By stage; the seed, which is the recipe's, by none."""
    metrics: list[Delta] = field(default_factory=list)
    only: list[list[str]] = field(default_factory=lambda: [[], []])
    """Stages that only the first run has, and only the second."""


def compare(before: Path, after: Path) -> Difference:
    """Compare two run directories, stage by stage of the same name.

    Raises:
        UsageError: one of them has no stage that was begun.
    """
    old, new = _steps(before), _steps(after)
    found = Difference(only=[[name for name in old if name not in new], [name for name in new if name not in old]])
    for name in (name for name in old if name in new):
        differing = list(changes(old[name], new[name], cosmetic=True))
        found.settings += [(name, change) for change in differing if change.key != "seed"]
        seeds = [("", change) for change in differing if change.key == "seed"]
        found.settings = [*(one for one in seeds if one not in found.settings), *found.settings]
        made = [read_manifest(folder / name) for folder in (before, after)]
        if made[0] and made[1]:
            found.metrics += _deltas(made[0], made[1])
    return found


def _steps(run_dir: Path) -> dict[str, StepRecord]:
    """Read what was asked of each stage, those that made something first."""
    found = [(path.parent, read_step(path.parent)) for path in run_dir.glob("*/step.json")]
    if not found:
        raise UsageError(f"{run_dir} is no run directory: no stage was begun in it", hint="llmpipe diff RUN RUN")
    found.sort(key=lambda entry: ((entry[0] / "step.json").stat().st_mtime_ns, entry[0].name))
    return {step.name: step for _, step in found if step}


def _deltas(old: Manifest, new: Manifest) -> list[Delta]:
    before, after = flat(old.metrics), flat(new.metrics)
    return [
        Delta(old.name, key, before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and not any(part in key for part in BY_NATURE)
    ]


def show(before: Path, after: Path, *, as_json: bool) -> None:
    """Print what differs between two runs."""
    found = compare(before, after)
    if as_json:
        console.as_json(_as_json(before, after, found))
        return
    for run_dir, names in zip((before, after), found.only, strict=True):
        if names:
            console.data(f"only in {run_dir}: {', '.join(names)}")
    for stage, change in found.settings:
        console.data(console.clean(f"{stage}{': ' if change.text else '.' if stage else ''}{change}"))
    if not found.settings and not any(found.only):
        console.data("the settings are the same")
    if not found.metrics:
        console.data("no metric differs")
        return
    console.data("")
    rows = [
        (
            f"{delta.stage}.{delta.metric}",
            *(
                "" if value is None else console.number(value, key=delta.metric)
                for value in (delta.before, delta.after)
            ),
            "" if delta.difference is None else f"{delta.difference:+.3g}",
        )
        for delta in found.metrics
    ]
    table = console.table(rows, header=("metric", str(before), str(after), "change"), right=(1, 2, 3))
    console.show(table, to_stdout=True, indent=0)


def _as_json(before: Path, after: Path, found: Difference) -> dict[str, Any]:
    """Describe a difference; the schema is public."""
    return {
        "before": str(before),
        "after": str(after),
        "only_before": found.only[0],
        "only_after": found.only[1],
        "settings": [
            {"stage": stage or None, "key": c.key, "before": c.before, "after": c.after, "text": str(c)}
            for stage, c in found.settings
        ],
        "metrics": [
            {"stage": d.stage, "metric": d.metric, "before": d.before, "after": d.after, "change": d.difference}
            for d in found.metrics
        ],
    }
