"""Recipe → ordered steps: what each one reads, whether it runs, is skipped or resumed, and why.

A step's fingerprint covers its kind and version, its settings less cosmetic keys, the seed, the fingerprints of its
input stages and the sha256 of its input files. File times and library versions stay out of it: touching a file or
upgrading a library must not cost a night of training.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llmpipe import edges, functions, stages
from llmpipe.artifact import HashCache, Input, StepRecord, missing_output, read_manifest, read_step
from llmpipe.changes import changed_keys, without
from llmpipe.checkpoints import complete_checkpoints
from llmpipe.data.rows import expand
from llmpipe.errors import UsageError, did_you_mean
from llmpipe.recipe import Recipe
from llmpipe.settings import (
    AnySource,
    FunctionSource,
    GgufSource,
    PathSource,
    StageSettings,
    StageSource,
    source_key,
)

Action = Literal["run", "rerun", "resume", "skip", "wait"]
"""`wait`: left out by --only, --from or --until."""

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Step:
    """One stage of a plan."""

    record: StepRecord
    action: Action
    reason: str
    inputs: list[str]
    """Each input in a few words, `tok` or `texts/*.txt`, for people."""
    changes: list[str] = field(default_factory=list)
    resume_from: int | None = None
    is_chosen: bool = True
    """Whether the command asks for it; what is done is skipped either way."""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.record.name


@dataclass(frozen=True)
class Selection:
    """Which stages a command asks for; empty means all that are not up to date."""

    only: tuple[str, ...] = ()
    first: str | None = None
    last: str | None = None
    force: tuple[str, ...] = ()

    def names(self, recipe: Recipe) -> set[str]:
        """Return the selected stages; raises UsageError for a name that the recipe does not have."""
        order = list(recipe.stages)
        for name in (*self.only, *self.force, *filter(None, (self.first, self.last))):
            if name not in order:
                near = did_you_mean(name, order)
                raise UsageError(f"no stage is called '{name}'{near}", hint=f"stages: {', '.join(order)}")
        start = order.index(self.first) if self.first else 0
        stop = order.index(self.last) + 1 if self.last else len(order)
        return set(self.only or order) & set(order[start:stop])


def make_plan(recipe: Recipe, run_dir: Path, *, selection: Selection = Selection(), verify: bool = False) -> list[Step]:
    """Decide what to do for every stage of a recipe.

    Raises:
        UsageError: a selected stage needs one that is neither selected nor done.
    """
    chosen = selection.names(recipe)
    cache = HashCache(run_dir / ".hashes.json", verify=verify)
    steps: dict[str, Step] = {}
    for name, settings in recipe.stages.items():
        record, shown = _record(name, settings, recipe, {n: s.record.fingerprint for n, s in steps.items()}, cache)
        above = [steps[other] for other in edges.upstream(settings)]
        step = _decide(record, shown, above, run_dir, forced=name in selection.force)
        if name not in chosen and step.action != "skip":
            step = Step(record, "wait", "not asked for", shown)
        step = replace(step, is_chosen=name in chosen)
        late = [done.name for done in steps.values() if done in above and done.action == "wait"]
        if name in chosen and step.action != "skip" and late:
            raise UsageError(
                f"{name} needs {' and '.join(late)}, which {'is' if len(late) == 1 else 'are'} not finished",
                hint=f"llmpipe run {recipe.called} --until {late[-1]}",
            )
        steps[name] = step
    cache.save()
    return list(steps.values())


def _record(
    name: str, settings: StageSettings, recipe: Recipe, fingerprints: dict[str, str], cache: HashCache
) -> tuple[StepRecord, list[str]]:
    """Resolve a stage's settings and inputs, and take their fingerprint."""
    inputs: list[Input] = []
    shown: list[str] = []
    dumped = settings.model_dump(mode="json")
    for field_name, accepts in edges.input_fields(settings):
        sources = edges.sources_of(settings, field_name)
        if not sources:
            continue
        absolute = [_absolute(source, recipe.base) for source in sources]
        *path, key = edges.key_path(field_name)
        holder = edges.found_at(dumped, tuple(path))
        written = [source.model_dump(mode="json") for source in absolute]
        holder[key] = written if isinstance(holder[key], list) else written[0]
        for source, original in zip(absolute, sources, strict=True):
            inputs.append(_input(field_name, source, accepts.is_folder, fingerprints, cache))
            shown.append(_shown(original))
    module = stages.load(settings.kind)
    identity = {
        "kind": settings.kind,
        "version": module.VERSION,
        "settings": without(dumped, {entry.field for entry in inputs}),
        "seed": recipe.seed,
        "inputs": [[entry.field, entry.identity] for entry in inputs],
    }
    canonical = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    record = StepRecord(
        name=name,
        kind=settings.kind,
        stage_version=module.VERSION,
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        seed=recipe.seed,
        settings=dumped,
        inputs=inputs,
    )
    return record, list(dict.fromkeys(shown))


def _absolute(source: AnySource, base: Path) -> AnySource:
    if isinstance(source, PathSource):
        return source.model_copy(update={"path": str((base / source.path).absolute())})
    if isinstance(source, GgufSource):
        return source.model_copy(update={"gguf": str((base / source.gguf).absolute())})
    if isinstance(source, FunctionSource):
        return source.model_copy(update={"function": functions.absolute(source.function, base)})
    return source


def _input(
    field_name: str, source: AnySource, is_folder: bool, fingerprints: dict[str, str], cache: HashCache
) -> Input:
    """Identify an input's content: what it holds, and how it is to be read, but not where it lies."""
    reading = source.model_dump(mode="json", exclude={"stage", "path", "gguf", "function"})
    found: dict[str, str] = {}
    if isinstance(source, StageSource):
        content: Any = fingerprints[source.stage]
    elif isinstance(source, PathSource):
        folder = Path(source.path)
        inside = (file for pattern in MODEL_FILES for file in folder.glob(pattern))
        files = sorted(inside) if is_folder else expand(source.path, base=Path(), format=source.format)
        found = {str(file): cache.sha256(file) for file in files}
        content = [[file.suffix, found[str(file)]] for file in files]
    elif isinstance(source, GgufSource):
        content = cache.sha256(Path(source.gguf))
        found = {source.gguf: content}
    elif isinstance(source, FunctionSource):
        file, name = functions.split(source.function)
        found = {file: cache.sha256(Path(file))}
        content = [name, found[file]]
    else:
        content = None  # the id and the revision are part of `reading`
    identity = hashlib.sha256(json.dumps([reading, content], sort_keys=True).encode()).hexdigest()
    return Input(field=field_name, source=source.model_dump(mode="json"), identity=identity, files=found)


def _shown(source: AnySource) -> str:
    return str(source.model_dump()[str(source_key(source))])


def _decide(record: StepRecord, shown: list[str], above: list[Step], run_dir: Path, *, forced: bool) -> Step:
    """Apply the rule: equal manifest → skip; equal step.json and a complete checkpoint → resume; else run."""
    folder = run_dir / record.name
    manifest, begun = read_manifest(folder), read_step(folder)
    again = [step.name for step in above if step.action not in ("skip", "wait")]
    if forced:
        return Step(record, "rerun" if begun else "run", "asked for with --force", shown)
    if begun is None:
        return Step(record, "run", "first time", shown)
    if manifest is not None and manifest.fingerprint == record.fingerprint and not again:
        gone = missing_output(folder, manifest)
        if gone is None:
            return Step(record, "skip", "unchanged", shown)
        return Step(record, "rerun", f"its output {gone} is gone", shown)
    if begun.fingerprint != record.fingerprint:
        changes = list(changed_keys(begun, record))
        return Step(record, "rerun", _because(changes, again), shown, changes)
    if again:
        return Step(record, "rerun", f"{' and '.join(again)} will be made again", shown)
    if whole := complete_checkpoints(folder / "checkpoints"):
        return Step(record, "resume", f"from step {whole[-1][0]}", shown, resume_from=whole[-1][0])
    return Step(record, "rerun", "was not finished", shown)


def _because(changes: list[str], again: list[str]) -> str:
    return "; ".join(changes) if changes else f"{' and '.join(again) or 'an input'} changed"
