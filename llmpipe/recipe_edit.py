"""Write recipes: the copy of a recipe that a run keeps, and stages that were made from flags.

ruamel's round-trip mode keeps comments, order and the way numbers were written.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from llmpipe import edges, functions, yaml_tree
from llmpipe.artifact import write_text
from llmpipe.errors import Problem, RecipeError, UsageError
from llmpipe.recipe import Recipe, parse_override
from llmpipe.settings import BuiltinSource


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.width = 120
    yaml.allow_unicode = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def text_as_used(recipe: Recipe, overrides: Sequence[str]) -> str:
    """Return a recipe's text with overrides applied and paths made absolute, so that it can lie anywhere."""
    document = _yaml().load(recipe.tree.text)
    for override in overrides:
        path, value, _ = parse_override(override, where="--set")
        yaml_tree.assign(document, path, value)
    for name, settings in recipe.stages.items():
        written = document["stages"][name]
        for input_field, _ in edges.input_fields(settings):
            sources = edges.found_at(written, edges.key_path(input_field))
            for source in sources if isinstance(sources, list) else [sources]:
                for key in ("path", "gguf"):
                    if isinstance(source, dict) and key in source:
                        source[key] = str((recipe.base / str(source[key])).absolute())
                if isinstance(source, dict) and "function" in source:
                    source["function"] = functions.absolute(str(source["function"]), recipe.base)
    return _dump(document)


@dataclass(frozen=True)
class FromFlags:
    """A stage that was made from flags."""

    name: str
    kind: str
    keys: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    """The flag that was typed for a key."""
    overrides: dict[str, str] = field(default_factory=dict)
    """What was typed for each `key=value`."""
    if_taken: str | None = None
    """The hint where a stage of another kind has the name."""


def with_stages(run_dir: Path, made: Sequence[FromFlags]) -> str:
    """Return the text of a run's recipe with stages added or updated; a new recipe where there is none.

    Raises:
        UsageError: an override is not key=value or fits nowhere, or a name belongs to a stage of another kind.
    """
    path = run_dir / "recipe.yaml"
    document: dict[str, Any] = {"name": name_from(run_dir.absolute().name), "seed": 42, "stages": {}}
    if path.exists():
        tree = yaml_tree.read(path)  # refuses what is not YAML, with its place
        document = _yaml().load(tree.text)
        if not isinstance(tree.data, dict) or not isinstance(tree.data.get("stages"), dict):
            raise RecipeError(tree.problem((), "a recipe is a mapping with `name:` and `stages:`"))
    problems: list[Problem] = []
    for stage in made:
        written = document["stages"].setdefault(stage.name, {"kind": stage.kind})
        if not isinstance(written, dict):
            raise RecipeError(tree.problem(("stages", stage.name), "a stage is a mapping, such as {kind: sft, ...}"))
        if written.get("kind") != stage.kind:
            problem = f"stage '{stage.name}' of {path} is a {written.get('kind')} stage"
            raise UsageError(problem, hint=stage.if_taken)
        written.update(stage.keys)
        problems += _overridden(written, stage)
    if problems:
        raise UsageError(problems)
    return _dump(document)


def _overridden(written: dict[str, Any], stage: FromFlags) -> Iterator[Problem]:
    """Apply a stage's overrides to it."""
    for override, where in stage.overrides.items():
        key, value, found = parse_override(f"stages.{stage.name}.{override}", where=where)
        yield from found
        if not found and (message := yaml_tree.assign(written, key[2:], value)):
            yield Problem(message, where=where)


def name_from(text: str) -> str:
    """Make a valid name of a file's or a folder's."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).lstrip("-_0123456789").rstrip("-_")[:64] or "mine"


def source_from_flag(value: str, *, flag: str, stages: Sequence[str]) -> Any:
    """Read what stands behind --data, --model, --tokenizer or --reward.

    It is a stage, a file or folder, a GGUF file, a size, `hub:ID`, a builtin, or a function `FILE.py:NAME`.

    Raises:
        UsageError: it is none of these.
    """
    if value in stages:
        return value
    if value.startswith("hub:"):
        return {"hub": value.removeprefix("hub:")}
    if flag in ("data", "prompts") and value == BuiltinSource.model_fields["builtin"].annotation.__args__[0]:  # type: ignore[union-attr]
        return {"builtin": value}
    if flag == "model" and re.fullmatch(r"\d+(\.\d+)?[kMB]", value):
        return {"size": value}
    if flag == "reward" and re.fullmatch(r".+\.py:\w+", value):
        return {"function": functions.absolute(value, Path())}
    path = Path(value)
    if flag in ("model", "tokenizer") and path.suffix.lower() == ".gguf" and path.is_file():
        return {"gguf": str(path.absolute())}
    if path.exists() or any(char in value for char in "*?["):
        return {"path": str(path.absolute())}
    known = f"stages of this run: {', '.join(stages)}; " if stages else ""
    function = ", a function FILE.py:NAME" if flag == "reward" else ""
    raise UsageError(
        Problem("no such file, folder or stage", where=f"--{flag} {value}"),
        hint=f"{known}a hub repository is written hub:OWNER/NAME{function}",
    )


def _dump(document: Any) -> str:
    buffer = io.StringIO()
    _yaml().dump(document, buffer)
    return buffer.getvalue()


def keep(run_dir: Path, text: str) -> None:
    """Write the run's recipe.yaml, unless it says the same already."""
    path = run_dir / "recipe.yaml"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
