"""YAML → Recipe: strict, every problem in one pass, each with file:line:column and what to type instead.

The whole recipe is valid before its first stage starts: names, types, Hugging Face options, edges, files.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from llmpipe import edges, passthrough, stages, yaml_tree
from llmpipe.data.rows import expand
from llmpipe.errors import DataError, Problem, RecipeError, UsageError, did_you_mean
from llmpipe.settings import STAGE_NAME, Passthrough, PathSource, StageSettings, Strict
from llmpipe.yaml_tree import KeyPath, Tree


class RecipeFile(Strict):
    """The top level of a recipe."""

    name: str = Field(pattern=STAGE_NAME, description="names the run directory: runs/NAME")
    seed: int = Field(42, ge=0, lt=2**32, description="one seed for all stages; each result repeats with it")
    stages: dict[Annotated[str, Field(pattern=STAGE_NAME)], Any] = Field(min_length=1, description="stages by name")


@dataclass(frozen=True)
class Recipe:
    """A valid recipe; its stages are in an order that can be run and have all inputs filled in."""

    name: str
    seed: int
    stages: dict[str, StageSettings]
    path: Path
    tree: Tree

    @property
    def base(self) -> Path:
        """The folder that paths in the recipe are relative to."""
        return self.path.parent


def find(name: str) -> Path:
    """Return the recipe file for a path, or for the name of a recipe that ships with llmpipe.

    Raises:
        UsageError: neither exists; the near names are listed.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path / "recipe.yaml" if path.is_dir() else path
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    raise UsageError(
        f"no recipe file or shipped recipe is called '{name}'{did_you_mean(name, list(shipped))}",
        hint=f"shipped recipes: {', '.join(shipped)}",
    )


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes in the package by name; in an editable install they lie beside it."""
    inside = Path(str(files("llmpipe"))) / "recipes"
    folder = inside if inside.is_dir() else inside.parent.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(path: Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are `stage.key=value`, `name=value` or `seed=value`.

    Raises:
        RecipeError: with every problem that was found.
    """
    tree = yaml_tree.read(path, shown_as=_shown(path))
    return check(tree, path.resolve(), overrides=overrides)


def check(tree: Tree, path: Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Check a tree that was read from `path`."""
    if not isinstance(tree.data, dict):
        raise RecipeError(tree.problem((), "a recipe is a mapping with `name:` and `stages:`"))
    for override in overrides:
        _apply(tree, override)
    problems: list[Problem] = []
    top = _validate(RecipeFile, tree.data, (), tree, problems)
    parsed: dict[str, StageSettings] = {}
    written = tree.data.get("stages")
    for name, raw in (written.items() if isinstance(written, dict) else ()):
        settings = _stage(name, raw, tree, problems)
        if settings is not None:
            parsed[name] = settings
            problems += _option_problems(name, settings, tree)
            problems += _missing_files(name, settings, path.parent, tree)
    if top is not None and len(parsed) == len(top.stages):
        parsed = edges.connect(parsed, tree, problems)
    if problems or top is None:
        raise RecipeError(_in_file_order(problems), hint=_hint(problems, tree))
    return Recipe(name=top.name, seed=top.seed, stages=parsed, path=path, tree=tree)


def _stage(name: str, raw: Any, tree: Tree, problems: list[Problem]) -> StageSettings | None:
    path: KeyPath = ("stages", name)
    if not isinstance(raw, dict):
        problems.append(tree.problem(path, "a stage is a mapping, such as {kind: sft, ...}"))
        return None
    kind = raw.get("kind")
    if kind is None:
        problems.append(tree.problem(path, f"has no `kind:`; kinds are {', '.join(stages.STAGES)}", at_key=True))
        return None
    if kind not in stages.STAGES:
        known = did_you_mean(str(kind), list(stages.STAGES)) or f"; kinds are {', '.join(stages.STAGES)}"
        problems.append(tree.problem((*path, "kind"), f"'{kind}' is not a kind of stage{known}"))
        return None
    return _validate(stages.load(kind).Settings, raw, path, tree, problems)


def _validate(
    model: type[Any], raw: Any, path: KeyPath, tree: Tree, problems: list[Problem]
) -> Any | None:
    """Validate with pydantic and put its messages at their place in the file."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            where = (*path, *_yaml_path(raw, details["loc"]))
            unknown = details["type"] == "extra_forbidden"
            problems.append(tree.problem(where, _message(model, details), at_key=unknown or details["type"] == "missing"))
        return None


def _yaml_path(raw: Any, loc: tuple[str | int, ...]) -> KeyPath:
    """Leave out of pydantic's location what is not in the file: the tags of unions, the index of a lone item."""
    path: list[str | int] = []
    for part in loc:
        if isinstance(raw, dict) and part in raw:
            raw = raw[str(part)]
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
        elif isinstance(raw, dict) and part == loc[-1] and part not in _TAGS:
            pass  # a missing key: name it
        else:
            continue
        path.append(part)
    return tuple(path)


_TAGS = {"stage", "path", "hub", "builtin", "size", "arch", "[key]"}


def _message(model: type[BaseModel], details: ErrorDetails) -> str:
    """Word pydantic's message the way a recipe's author speaks."""
    kind, loc, value = details["type"], details["loc"], details["input"]
    if kind == "extra_forbidden":
        key = str(loc[-1])
        known = list(_field_names(model.model_fields[str(loc[0])].annotation)) if len(loc) > 1 else list(model.model_fields)
        trainer = model.model_fields.get("trainer")
        if len(loc) == 1 and trainer:
            (options,) = (extra for extra in trainer.metadata if isinstance(extra, Passthrough))
            if key in passthrough.options_of(options.config_class):
                return "unknown key; it is a trainer option, so write it under `trainer:`"
        return f"unknown key{did_you_mean(key, known) or '; known are ' + ', '.join(known)}"
    if kind == "missing":
        return "is missing"
    message = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if kind == "string_pattern_mismatch" and details.get("ctx", {}).get("pattern") == STAGE_NAME:
        message = "must be a name of lower-case letters, digits, - and _, beginning with a letter"
    if isinstance(value, str | int | float | bool) or value is None:
        message += f", not {'empty' if value is None else repr(value)}"
    return message


def _field_names(annotation: Any) -> Iterator[str]:
    """Yield the field names of all models within a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from annotation.model_fields
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated, list, dict):
        for argument in typing.get_args(annotation):
            yield from _field_names(argument)


def _option_problems(name: str, settings: StageSettings, tree: Tree) -> Iterator[Problem]:
    """Check the Hugging Face options of a stage for name, type and the ones that are reserved."""
    for field, info in type(settings).model_fields.items():
        for extra in info.metadata:
            if not isinstance(extra, Passthrough):
                continue
            values: dict[str, Any] = getattr(settings, field) or {}
            for key in values:
                if key in extra.reserved:
                    message = f"is reserved: {extra.reserved[key]}"
                    yield tree.problem(("stages", name, field, key), message, at_key=True)
            free = {key: value for key, value in values.items() if key not in extra.reserved}
            for key, message in passthrough.option_problems(extra.config_class, free):
                unknown = key not in passthrough.options_of(extra.config_class)
                yield tree.problem(("stages", name, field, key), message, at_key=unknown)


def _missing_files(name: str, settings: StageSettings, base: Path, tree: Tree) -> Iterator[Problem]:
    for field, accepts in edges.input_fields(settings):
        for index, source in enumerate(edges.sources_of(settings, field)):
            if not isinstance(source, PathSource):
                continue
            tail: KeyPath = (field, index, "path") if isinstance(getattr(settings, field), list) else (field, "path")
            where = ("stages", name, *_yaml_path(tree.data["stages"][name], tail))
            if not accepts.is_folder:
                try:
                    expand(source.path, base=base)
                except DataError as error:
                    yield tree.problem(where, error.problems[0].message)
            elif not (base / source.path).is_dir():
                yield tree.problem(where, f"no such folder: {source.path}")
            elif not any((base / source.path / file).is_file() for file in ("config.json", "tokenizer.json")):
                yield tree.problem(where, f"{source.path} has no config.json; a Hugging Face model folder is needed")


def _apply(tree: Tree, override: str) -> None:
    """Set one value from `--set`; the value is read as YAML, so 2e-5, true and [a, b] mean what they do in a file."""
    where = f"--set {override}"
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UsageError(Problem("write it as stage.key=value", where=where))
    value = yaml_tree.parse(text, shown_as=where).data if text.strip() else None
    parts = tuple(dotted.split("."))
    path: KeyPath = parts if parts[0] in ("name", "seed", "stages") else ("stages", *parts)
    known = tree.data.get("stages") or {}
    if path[0] == "stages" and (len(path) < 3 or path[1] not in known):
        message = f"no stage is called '{path[1]}'{did_you_mean(str(path[1]), list(known))}" if len(path) > 1 else "too short"
        raise RecipeError(Problem(message, where=where), hint=f"stages: {', '.join(known)}")
    tree.set(path, value, where=where)


def _in_file_order(problems: list[Problem]) -> list[Problem]:
    def place(problem: Problem) -> tuple[int, int]:
        parts = (problem.where or "").rsplit(":", 2)
        return (int(parts[1]), int(parts[2])) if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit() else (0, 0)

    return sorted(problems, key=place)


def _hint(problems: list[Problem], tree: Tree) -> str | None:
    """Point to the command that lists what may be written where the first unknown option stands."""
    for problem in problems:
        parts = (problem.path or "").split(".")
        if len(parts) > 2 and ("not an option" in problem.message or "unknown key" in problem.message):
            kind = tree.data["stages"][parts[1]].get("kind")
            return f"llmpipe options {kind} {parts[-1].split('_')[0]}"
    return None


def _shown(path: Path) -> str:
    """Name a file the short way when it is below the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
