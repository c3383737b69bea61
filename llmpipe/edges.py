"""The edges between stages: which output feeds which input, checked by type and ordered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter

from llmpipe import stages
from llmpipe.errors import Problem, did_you_mean
from llmpipe.settings import Accepts, AnySource, Artifact, PathSource, StageSettings, StageSource, Strict
from llmpipe.yaml_tree import KeyPath, Tree


def input_fields(settings: Strict) -> Iterator[tuple[str, Accepts]]:
    """Yield the fields that may name other stages, with what they accept; one within another as `tasks.0.choices`."""
    for name, info in type(settings).model_fields.items():
        if accepts := _accepts(info.metadata):
            yield name, accepts
            continue
        value = getattr(settings, name)
        listed = enumerate(value) if isinstance(value, list) else ()
        for prefix, item in {name: value, **{f"{name}.{part}": item for part, item in listed}}.items():
            if isinstance(item, Strict):
                yield from ((f"{prefix}.{inner}", extra) for inner, extra in input_fields(item))


def written_inputs(model: type[BaseModel], raw: dict[str, Any]) -> dict[KeyPath, tuple[Any, Accepts]]:
    """Return what is written in the fields that may name other stages, by its place; the rest need not be valid."""
    found: dict[KeyPath, tuple[Any, Accepts]] = {}
    for name, info in model.model_fields.items():
        written = raw.get(name)
        if accepts := _accepts(info.metadata):
            found[name,] = (written, accepts)
            continue
        listed = enumerate(written) if isinstance(written, list) else ()
        parts: dict[KeyPath, Any] = {(name,): written, **{(name, part): item for part, item in listed}}
        for prefix, item in parts.items():
            for inner in models_within(info.annotation) if isinstance(item, dict) else ():
                found |= {(*prefix, *path): given for path, given in written_inputs(inner, item).items()}
    return found


def models_within(annotation: Any) -> list[type[BaseModel]]:
    """Return the models of a field's type, such as those of which it lists some."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in models_within(argument)]


def _accepts(metadata: Iterable[Any]) -> Accepts | None:
    return next((extra for extra in metadata if isinstance(extra, Accepts)), None)


def sources_of(settings: StageSettings, field: str) -> list[AnySource]:
    """Return a field's sources as a list; empty when it was left out or holds something else."""
    value: Any = settings
    for key in key_path(field):
        value = value[key] if isinstance(key, int) else getattr(value, key)
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, AnySource)]


def key_path(field: str) -> KeyPath:
    """Return where a field stands in its stage: `tasks.0.choices` is at ("tasks", 0, "choices")."""
    return tuple(int(part) if part.isdigit() else part for part in field.split("."))


def upstream(settings: StageSettings) -> list[str]:
    """Name the stages that a stage reads, each once, in the order of its fields."""
    found = [
        source.stage
        for field, _ in input_fields(settings)
        for source in sources_of(settings, field)
        if isinstance(source, StageSource)
    ]
    return list(dict.fromkeys(found))


def found_at(document: Any, path: KeyPath) -> Any:
    """Return what stands at a place of nested mappings and lists; None where there is nothing."""
    for key in path:
        there = key < len(document) if isinstance(document, list) and isinstance(key, int) else key in (document or {})
        document = document[key] if there else None
    return document


def connect(
    parsed: dict[str, StageSettings | None],
    tree: Tree,
    problems: list[Problem],
    *,
    skipped: dict[str, set[str]],
    base: Path,
) -> dict[str, StageSettings]:
    """Fill omitted inputs, check every edge, and return the stages in an order that can be run.

    Paths in the recipe are relative to `base`.
    What is wrong is appended to `problems`. A stage that could not be read is None, and `skipped` names the keys of
    the others that could not be; neither leads to a second problem here.
    """
    made = {name: stages.load(s.kind).produces(s) if s else None for name, s in parsed.items()}
    connected: dict[str, StageSettings] = {}
    for name, settings in parsed.items():
        if settings is None:
            continue
        filled: dict[str, Any] = {}
        for field, accepts in _omitted(settings, skipped.get(name, set())):
            if accepts.same_as is None and (fill := _fill(name, field, accepts, made, tree, problems)):
                filled[field] = fill
        for field, accepts in input_fields(settings):
            accepts = _narrowed(settings, field, accepts, made[name])
            for index, source in enumerate(sources_of(settings, field)):
                if isinstance(source, StageSource):
                    item: KeyPath = ("stages", name, *key_path(field), index)
                    problem = _edge_problem(name, source.stage, accepts, made, tree)
                    problems += [tree.problem(item if item in tree.values else item[:-1], problem)] if problem else []
        connected[name] = _with_inputs(settings, filled)
        made[name] = _kept(connected[name], made[name], made, base)
    for name, settings in connected.items():  # once the inputs of all other stages are known
        same = {
            field: _fill_like(name, field, accepts, connected, made, tree, problems)
            for field, accepts in _omitted(settings, skipped.get(name, set()))
            if accepts.same_as is not None
        }
        connected[name] = _with_inputs(settings, same)
    ordered = _ordered(connected, tree, problems)
    if not problems:
        _check_lineage(ordered, tree, problems)
    return ordered


def _narrowed(settings: StageSettings, field: str, accepts: Accepts, own: Artifact | None) -> Accepts:
    """A stage with an objective trains only the kind of model that the objective makes."""
    if field == "model" and hasattr(settings, "objective") and own is not None:
        return replace(accepts, artifacts=(own,))
    return accepts


def _kept(
    settings: StageSettings, own: Artifact | None, made: dict[str, Artifact | None], base: Path
) -> Artifact | None:
    """A model that is taught to answer stays the kind it is: sft of an encoder-decoder hands on another one."""
    model = getattr(settings, "model", None)
    given: Artifact | None = None
    if isinstance(model, StageSource):
        given = made.get(model.stage)
    elif isinstance(model, PathSource) and _is_encoder_decoder(base / model.path):
        given = "seq2seq-lm"
    return "seq2seq-lm" if own == "causal-lm" and given == "seq2seq-lm" else own


def _is_encoder_decoder(folder: Path) -> bool:
    """Tell by its configuration whether a model's folder holds one; loading it says what is wrong with a bad one."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("is_encoder_decoder") is True


def _omitted(settings: StageSettings, skipped: set[str]) -> Iterator[tuple[str, Accepts]]:
    """Yield the inputs that were left out and are needed; not those that were written and could not be read."""
    for field, accepts in input_fields(settings):
        if "." not in field and getattr(settings, field) is None and field not in settings.unused_inputs() | skipped:
            yield field, accepts


def _with_inputs(settings: StageSettings, found: dict[str, Any]) -> StageSettings:
    """Put inputs that were left out into settings; where a field holds several, one becomes a list."""
    types: dict[str, Any] = {field: type(settings).model_fields[field].annotation for field in found}
    typed = {field: TypeAdapter(types[field]).validate_python(value) for field, value in found.items()}
    return settings.model_copy(update=typed)


def _fill_like(
    name: str,
    field: str,
    accepts: Accepts,
    connected: dict[str, StageSettings],
    made: dict[str, Artifact | None],
    tree: Tree,
    problems: list[Problem],
) -> Any:
    """Find what the one stage in the field `same_as` reads, or else the one earlier stage that fits."""
    assert accepts.same_as is not None
    leading = sources_of(connected[name], accepts.same_as)
    named = [source.stage for source in leading if isinstance(source, StageSource)]
    if not leading or (len(named) == 1 and named[0] not in connected):
        return None  # what is wrong there was said, and mending it may mend this
    if len(named) == 1 and field in type(other := connected[named[0]]).model_fields:
        read = [made.get(source.stage) for source in sources_of(other, field) if isinstance(source, StageSource)]
        if all(artifact in (None, *accepts.artifacts) for artifact in read):
            return getattr(other, field)
    return _fill(name, field, accepts, made, tree, problems)


def _check_lineage(ordered: dict[str, StageSettings], tree: Tree, problems: list[Problem]) -> None:
    """Ask every stage whether the stages that lead to it bring what it needs."""
    kinds: dict[str, set[str]] = {}
    for name, settings in ordered.items():
        above = upstream(settings)
        kinds[name] = {ordered[other].kind for other in above}.union(*(kinds[other] for other in above))
        if problem := settings.lineage_problem(kinds[name]):
            problems.append(tree.problem(("stages", name), problem, at_key=True))


def _fill(
    name: str, field: str, accepts: Accepts, made: dict[str, Any], tree: Tree, problems: list[Problem]
) -> StageSource | None:
    """Find the one earlier stage that fits an omitted input."""
    earlier = list(made)[: list(made).index(name)]
    fitting = [other for other in earlier if made[other] in accepts.artifacts] if accepts.fill else []
    if accepts.fill and any(made[other] is None for other in earlier):
        return None  # a stage that cannot be read yet may be the one
    if len(fitting) == 1:
        return StageSource(stage=fitting[0], weight=1.0)
    wanted = _listed(accepts.artifacts, "or")
    if fitting:
        how_many = "both" if len(fitting) == 2 else "all"
        message = f"name the {field}: {_listed(fitting)} {how_many} fit, such as `{field}: {fitting[-1]}`"
    else:
        message = f"needs `{field}:` ({wanted}), and no earlier stage makes one"
    problems.append(tree.problem(("stages", name), message, at_key=True))
    return None


def _edge_problem(name: str, target: str, accepts: Accepts, made: dict[str, Any], tree: Tree) -> str | None:
    wanted = _listed(accepts.artifacts, "or")
    fitting = [other for other, artifact in made.items() if artifact in accepts.artifacts and other != name]
    if target == name:
        return "a stage cannot be its own input"
    if target not in made:
        known = f"; stages here: {', '.join(other for other in made if other != name) or 'none'}"
        return f"no stage is called '{target}'{did_you_mean(target, fitting or list(made)) or known}"
    if made[target] is not None and made[target] not in accepts.artifacts:
        better = [f"'{other}' (line {tree.keys['stages', other].line})" for other in fitting]
        is_one = f"; {_listed(better)} {'is one' if len(better) == 1 else 'are such'}" if better else ""
        return f"stage '{target}' makes a {made[target]}, a {wanted} is needed{is_one}"
    return None


def _ordered(parsed: dict[str, StageSettings], tree: Tree, problems: list[Problem]) -> dict[str, StageSettings]:
    """Sort so that inputs come first, keeping the recipe's order where it may be kept."""
    waiting = dict(parsed)
    ordered: dict[str, StageSettings] = {}
    while waiting:
        ready = next(
            (n for n, s in waiting.items() if not any(u in waiting and u != n for u in upstream(s))),
            None,
        )
        if ready is None:
            cycle = _cycle(waiting)
            message = f"these stages wait for each other: {' → '.join([*cycle, cycle[0]])}"
            problems.append(tree.problem(("stages", cycle[0]), message, at_key=True))
            return parsed
        ordered[ready] = waiting.pop(ready)
    return ordered


def _cycle(waiting: dict[str, StageSettings]) -> list[str]:
    """Follow inputs among stages that cannot start until one comes up twice."""
    seen: list[str] = []
    name = next(iter(waiting))
    while name not in seen:
        seen.append(name)
        name = next(other for other in upstream(waiting[name]) if other in waiting and other != name)
    return seen[seen.index(name) :]


def _listed(names: Sequence[str], word: str = "and") -> str:
    return f" {word} ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
