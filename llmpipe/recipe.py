"""YAML → Recipe: strict, every problem in one pass, each with file:line:column and what to type instead.

The whole recipe is valid before its first stage starts: names, types, Hugging Face options, edges, files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from llmpipe import edges, functions, passthrough, redaction, stages, yaml_tree
from llmpipe.data.rows import expand
from llmpipe.errors import DataError, Problem, RecipeError, UsageError, did_you_mean
from llmpipe.settings import STAGE_NAME, FunctionSource, Passthrough, StageSettings, Strict
from llmpipe.wording import message_of, shown_value, yaml_path
from llmpipe.yaml_tree import KeyPath, Tree

MODEL_MARKS = ("config.json", "adapter_config.json", "tokenizer.json")
"""Files of which a Hugging Face folder has one: a model, an adapter or a tokenizer."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
GGUF_MARK = b"GGUF"


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

    @property
    def called(self) -> str:
        """What to type for it: the name of a recipe that ships with llmpipe, else its file."""
        return next((name for name, path in shipped_recipes().items() if path == self.path), self.tree.file)


def find(name: str) -> Path:
    """Return the recipe file for a path, or for the name of a recipe that ships with llmpipe.

    Raises:
        UsageError: neither exists; the near names are listed.
    """
    path, shipped = Path(name), shipped_recipes()
    if path.is_dir() and ((path / "recipe.yaml").exists() or name not in shipped):
        return path / "recipe.yaml"
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
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
    tree = yaml_tree.read(path, shown_as=shown(path))
    return check(tree, path.resolve(), overrides=overrides)


def check(tree: Tree, path: Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Check a tree that was read from `path`."""
    if not isinstance(tree.data, dict):
        raise RecipeError(tree.problem((), "a recipe is a mapping with `name:` and `stages:`"))
    problems = [problem for override in overrides for problem in _apply(tree, override)]
    problems += redaction.problems(tree)
    top = _validate(RecipeFile, tree.data, (), tree, problems)
    written = tree.data.get("stages")
    parsed: dict[str, StageSettings | None] = {}
    skipped: dict[str, set[str]] = {}
    for name, raw in written.items() if isinstance(written, dict) else ():
        parsed[name], skipped[name] = _stage(name, raw, path.parent, tree, problems)
    connected = edges.connect(parsed, tree, problems, skipped=skipped, base=path.parent)
    if problems or top is None:
        raise RecipeError(_in_file_order(problems), hint=_hint(problems, tree))
    return Recipe(name=top.name, seed=top.seed, stages=connected, path=path, tree=tree)


def _stage(
    name: str, raw: Any, base: Path, tree: Tree, problems: list[Problem]
) -> tuple[StageSettings | None, set[str]]:
    """Check one stage; where a key is wrong, return what the others say, so that edges are checked all the same."""
    path: KeyPath = ("stages", name)
    if not isinstance(raw, dict):
        problems.append(tree.problem(path, "a stage is a mapping, such as {kind: sft, ...}"))
        return None, set()
    kind = raw.get("kind")
    if kind is None:
        problems.append(tree.problem(path, f"has no `kind:`; kinds are {', '.join(stages.STAGES)}", at_key=True))
        return None, set()
    if not isinstance(kind, str) or kind not in stages.STAGES:
        known = did_you_mean(str(kind), list(stages.STAGES)) or f"; kinds are {', '.join(stages.STAGES)}"
        problems.append(tree.problem((*path, "kind"), f"{shown_value(kind)} is not a kind of stage{known}"))
        return None, set()
    model = stages.load(kind).Settings
    found: list[Problem] = []
    settings = _validate(model, raw, path, tree, found)
    problems += [*found, *_option_problems(name, model, raw, tree), *_missing_files(name, model, raw, base, tree)]
    bad: set[str] = set()
    if settings is None:
        bad = {str(problem.path).removeprefix(f"stages.{name}").lstrip(".").partition(".")[0] for problem in found}
        rest = {key: value for key, value in raw.items() if key not in bad}
        settings = _validate(model, rest, path, tree, [])
    problems += _function_problems(name, settings, base, tree) if settings is not None else ()
    return settings, bad


def _validate(model: type[Any], raw: Any, path: KeyPath, tree: Tree, problems: list[Problem]) -> Any | None:
    """Validate with pydantic and put its messages at their place in the file."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            where = (*path, *yaml_path(raw, details["loc"]))
            at_key = details["type"] in ("extra_forbidden", "missing") or details["loc"][-1:] in ((), ("[key]",))
            problems.append(tree.problem(where, message_of(model, details), at_key=at_key))
        return None


def _option_problems(name: str, model: type[StageSettings], raw: dict[str, Any], tree: Tree) -> Iterator[Problem]:
    """Check the Hugging Face options of a stage for name, type and the ones that are reserved."""
    for field, info in model.model_fields.items():
        values = raw.get(field)
        for extra in info.metadata:
            if not isinstance(extra, Passthrough) or not isinstance(values, dict):
                continue
            reserved = {key for key in values if key in extra.reserved}
            for key in reserved:
                yield tree.problem(("stages", name, field, key), f"is reserved: {extra.reserved[key]}", at_key=True)
            free = {key: value for key, value in values.items() if key not in reserved}
            for key, message in passthrough.option_problems(extra.config_class, free):
                unknown = key not in passthrough.options_of(extra.config_class)
                yield tree.problem(("stages", name, field, key), message, at_key=unknown)


def _missing_files(
    name: str, model: type[StageSettings], raw: dict[str, Any], base: Path, tree: Tree
) -> Iterator[Problem]:
    for field, (written, accepts) in edges.written_inputs(model, raw).items():
        for index, source in enumerate(written if isinstance(written, list) else [written]):
            item: KeyPath = (*field, index) if isinstance(written, list) else field
            for key in ("path", "gguf"):
                path = source.get(key) if isinstance(source, dict) else None
                if not isinstance(path, str) or not path:
                    continue
                if key == "gguf":
                    found = _gguf_problem(path, base)
                else:
                    found = _folder_problem(path, base) if accepts.is_folder else _data_problem(source, base)
                if found:
                    yield tree.problem(("stages", name, *item, key), found)


def _function_problems(name: str, settings: StageSettings, base: Path, tree: Tree) -> Iterator[Problem]:
    """Look for the user's functions in their files; nothing of the user's is run or imported for that."""
    for field, _ in edges.input_fields(settings):
        for index, source in enumerate(edges.sources_of(settings, field)):
            if isinstance(source, FunctionSource) and (message := functions.problem_with(source.function, base)):
                item: KeyPath = ("stages", name, *edges.key_path(field), index)
                yield tree.problem((*(item if item in tree.values else item[:-1]), "function"), message)


def _data_problem(source: dict[str, Any], base: Path) -> str | None:
    """Say why the path of a source cannot be read as data files."""
    try:
        expand(source["path"], base=base, format=source.get("format"))
    except DataError as error:
        return error.problems[0].message
    return None


def _folder_problem(path: str, base: Path) -> str | None:
    """Say why a path cannot be the folder of a model or tokenizer."""
    if (base / path).is_file() and path.lower().endswith(".gguf"):
        return f"{path} is a GGUF file; write {{gguf: {path}}}"
    elif not (base / path).is_dir():
        return f"no such folder: {path}"
    elif not any((base / path / file).is_file() for file in MODEL_MARKS):
        return f"{path} has no config.json; a Hugging Face model folder is needed"
    pickles = sorted(file.name for pattern in PICKLES for file in (base / path).glob(pattern))
    if pickles and not any((base / path).glob("*.safetensors")):
        return f"{path} has its weights in a pickle ({pickles[0]}), which may hold code; save them as safetensors"
    return None


def _gguf_problem(path: str, base: Path) -> str | None:
    """Say why a path cannot be a GGUF file, by its first bytes."""
    file = base / path
    if not file.is_file():
        beside = sorted(other.name for other in file.parent.glob("*.gguf"))
        near = did_you_mean(file.name, beside) or (f"; beside it: {', '.join(beside)}" if beside else "")
        return f"no such file: {path}{near}"
    with file.open("rb") as opened:
        begins = opened.read(len(GGUF_MARK))
    return None if begins == GGUF_MARK else f"{path} is no GGUF file: it begins with other bytes"


def _apply(tree: Tree, override: str) -> Iterator[Problem]:
    """Set one value from `--set`; the value is read as YAML, so 2e-5, true and [a, b] mean what they do in a file."""
    where = f"--set {override}"
    path, value, problems = parse_override(override, where=where)
    yield from problems
    known = tree.data.get("stages")
    if problems or (path[0] == "stages" and not isinstance(known, dict)):
        return
    if path[0] != "stages" and len(path) > 1:
        yield Problem(f"{path[0]} holds no keys", where=where)
    elif path[0] == "stages" and (len(path) == 1 or path[1] not in known):
        wanted = path[1] if len(path) > 1 else "stages"
        near = did_you_mean(wanted, list(known)) or f"; stages are {', '.join(known)}"
        yield Problem(f"no stage is called '{wanted}'{near}", where=where)
    elif path[0] == "stages" and len(path) == 2:
        yield Problem(f"'{path[1]}' is a stage; write a key of it: {path[1]}.KEY=VALUE", where=where)
    elif problem := yaml_tree.assign(tree.data, path, value):
        yield Problem(problem, where=where)
    else:
        tree.relabel(tuple(path), where)


def parse_override(override: str, *, where: str) -> tuple[tuple[str, ...], Any, list[Problem]]:
    """Split `key=value` into the path from the top of the recipe and a YAML value; an empty value is null."""
    dotted, equals, text = override.partition("=")
    path = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(path):
        return path, None, [Problem("write it as key=value, such as chat.trainer.max_steps=100", where=where)]
    path = path if path[0] in ("name", "seed", "stages") else ("stages", *path)
    try:
        return path, yaml_tree.parse(text, shown_as=where).data if text.strip() else None, []
    except RecipeError as error:
        return path, None, [Problem(problem.message, where=where) for problem in error.problems]


def _in_file_order(problems: list[Problem]) -> list[Problem]:
    def place(problem: Problem) -> tuple[int, int]:
        found = re.search(r":(\d+):(\d+)$", problem.where or "")
        return (int(found[1]), int(found[2])) if found else (0, 0)

    return sorted(problems, key=place)


def _hint(problems: list[Problem], tree: Tree) -> str | None:
    """Point to the command that lists what may be written where the first unknown option stands."""
    for problem in problems:
        parts = (problem.path or "").split(".")
        if parts[0] == "stages" and ("not an option" in problem.message or "unknown key" in problem.message):
            stage = tree.data["stages"].get(parts[1])
            near = re.search(r"did you mean (\w+)", problem.message)
            word = near[1] if near else parts[-1] if "it is one of" in problem.message else ""
            return f"llmpipe options {stage['kind']} {word.split('_')[0]}".rstrip() if stage else None
    return None


def shown(path: Path) -> str:
    """Name a file the short way when it is below the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
