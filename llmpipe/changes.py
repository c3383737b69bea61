"""What differs between two records of a step: for a plan that says why it runs again, and for `llmpipe diff`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpipe import edges
from llmpipe.artifact import Input, StepRecord
from llmpipe.settings import COSMETIC, SOURCE_KEYS

NOT_THE_OUTPUT = {"processes"}
"""Keys of a stage that say how it works, and never what comes out."""
BOUNDS = {"fail_if"}
"""Keys that say what the output must be like; see `llmpipe.bounds`."""


@dataclass(frozen=True)
class Change:
    """A key that differs; `text` says it where an old and a new value do not."""

    key: str
    before: Any
    after: Any
    text: str = ""

    def __str__(self) -> str:
        return self.text or f"{self.key} {brief(self.before)} → {brief(self.after)}"


def changed_keys(old: StepRecord, new: StepRecord) -> Iterator[str]:
    """Yield what makes a step run again, one for each key: `trainer.learning_rate 2e-5 → 1e-5`."""
    return map(str, changes(old, new))


def changes(old: StepRecord, new: StepRecord, *, cosmetic: bool = False) -> Iterator[Change]:
    """Yield the keys that differ; with `cosmetic` also those that cannot change the output."""
    if old.kind != new.kind:
        yield Change("kind", old.kind, new.kind)
        return
    if old.stage_version != new.stage_version:
        versions = (old.stage_version, new.stage_version)
        told = "llmpipe's {} stage is newer (version {} → {})".format(new.kind, *versions)
        yield Change("stage_version", *versions, text=told)
    if old.seed != new.seed:
        yield Change("seed", old.seed, new.seed)
    inputs = {entry.field for entry in (*old.inputs, *new.inputs)}
    before, after = (flat(without(step.settings, inputs, cosmetic=cosmetic)) for step in (old, new))
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            yield Change(key, before.get(key), after.get(key))
    for name in dict.fromkeys(entry.field for entry in (*new.inputs, *old.inputs)):
        had = [entry for entry in old.inputs if entry.field == name]
        has = [entry for entry in new.inputs if entry.field == name]
        if [e.identity for e in had] != [e.identity for e in has]:
            yield from _input_changes(name, had, has, new.settings.get(name))


def _input_changes(name: str, had: Sequence[Input], has: Sequence[Input], value: Any) -> Iterator[Change]:
    """Say how an input differs: other sources, sources that are read in another way, or other content."""
    old = [entry.source[key] for entry in had for key in SOURCE_KEYS if key in entry.source]
    new = [entry.source[key] for entry in has for key in SOURCE_KEYS if key in entry.source]
    if old != new:
        yield Change(name, " + ".join(old) or "none", " + ".join(new) or value)
        return
    for before, after in zip(had, has, strict=True):
        for key in dict.fromkeys([*before.source, *after.source]):
            if before.source.get(key) != after.source.get(key):
                yield Change(f"{name}.{key}", before.source.get(key), after.source.get(key))
    files = {file: digest for entry in had for file, digest in entry.files.items()}
    moved = [Path(f).name for entry in has for f, digest in entry.files.items() if files.get(f) != digest]
    if moved or files.keys() != {file for entry in has for file in entry.files}:
        text = f"{', '.join(moved) or ' + '.join(Path(path).name for path in new)} changed"
        yield Change(name, None, None, text=text)


def without(settings: dict[str, Any], inputs: set[str], *, cosmetic: bool = False) -> dict[str, Any]:
    """Leave out of a step's settings its inputs, which are identified otherwise, and what cannot change the output."""
    left_out = inputs | NOT_THE_OUTPUT | (set() if cosmetic else BOUNDS)
    kept = {key: value for key, value in settings.items() if key not in left_out}
    if within := [edges.key_path(field) for field in inputs if "." in field]:
        kept = deepcopy(kept)
    for *path, key in within:
        if isinstance(holder := edges.found_at(kept, tuple(path)), dict):
            holder.pop(key, None)
    if isinstance(kept.get("trainer"), dict) and not cosmetic:
        kept["trainer"] = {key: value for key, value in kept["trainer"].items() if key not in COSMETIC}
    return kept


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten mappings: {"trainer": {"seed": 1}} → {"trainer.seed": 1}."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}{key}.").items()}
    return {prefix[:-1]: value}


def brief(value: Any) -> str:
    """Write a value as it stands in a recipe: 2e-5, true."""
    if value is None:
        return "unset"
    return re.sub(r"(e[-+])0(?=\d)", r"\1", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
