"""What may be written in a recipe: lists of options, the JSON Schema, recipes to start from."""

from __future__ import annotations

import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.text import Text

from llmpipe import console, passthrough, stages
from llmpipe import recipe as recipes
from llmpipe.artifact import write_text
from llmpipe.edges import models_within
from llmpipe.errors import UsageError, did_you_mean
from llmpipe.recipe_edit import name_from
from llmpipe.settings import STAGE_NAME, AnySource, Passthrough, is_count


def show_options(kind: str, word: str | None, *, as_json: bool) -> None:
    """List a stage's own keys and the Hugging Face options it passes on."""
    if kind not in stages.STAGES:
        near = did_you_mean(kind, list(stages.STAGES))
        raise UsageError(f"'{kind}' is not a kind of stage{near}", hint=f"kinds: {', '.join(stages.STAGES)}")
    rows = [row for row in option_rows(kind) if word is None or word.lower() in row["key"].lower()]
    if not rows:
        raise UsageError(f"no option of {kind} has '{word}' in its name", hint=f"llmpipe options {kind}")
    if as_json:
        console.as_json(rows)
        return
    for row in rows:
        written = row["default"] and not row["default"].startswith("(")
        default = f" = {row['default']}" if written else f" {row['default']}".rstrip()
        console.out.print(Text.assemble((row["key"], "bold"), default, (f"  {_within(row['type'], 60)}", "cyan")))
        for line in textwrap.wrap(_short(row["help"]), width=max(40, min(console.out.width, 120) - 4)):
            console.out.print(Text(f"    {line}"))


def option_rows(kind: str) -> list[dict[str, str]]:
    """Return every key that a stage understands: key, type, default, help; reserved ones are left out."""
    return list(_rows(stages.load(kind).Settings, prefix="", passed_on=True))


def own_rows(kind: str) -> list[dict[str, str]]:
    """Return the keys that are llmpipe's own; one that holds options of a Hugging Face class is one row."""
    return list(_rows(stages.load(kind).Settings, prefix=""))


def _rows(model: type[BaseModel], *, prefix: str, passed_on: bool = False) -> Iterator[dict[str, str]]:
    for name, info in model.model_fields.items():
        extra = next((extra for extra in info.metadata if isinstance(extra, Passthrough)), None)
        if extra is not None and passed_on:
            for option in passthrough.options_of(extra.config_class).values():
                if option.name not in extra.reserved:
                    yield {
                        "key": f"{name}.{option.name}",
                        "type": option.type,
                        "default": option.default,
                        "help": option.help,
                    }
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _rows(info.annotation, prefix=f"{name}.")
        elif isinstance(made := info.get_default(call_default_factory=True), BaseModel):
            yield from _rows(type(made), prefix=f"{prefix}{name}.")
        elif steps := [model for model in models_within(info.annotation) if "step" in model.model_fields]:
            yield {"key": name, "type": "list", "default": _default(info), "help": info.description or ""}
            for model in steps:
                rows = _rows(model, prefix=f"{name}.{model.model_fields['step'].default}.")
                yield from (row for row in rows if not row["key"].endswith(".step"))
        else:
            words = ["count"] if is_count(info.metadata) else list(dict.fromkeys(_words(info.annotation)))
            yield {
                "key": f"{prefix}{name}",
                "type": " | ".join(words),
                "default": _default(info),
                "help": info.description or "",
            }


def _words(annotation: Any) -> Iterator[str]:
    """Name a type the way a recipe's author would, alternative by alternative."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from ["count"] if is_count(arguments[1:]) else _words(arguments[0])
    elif origin is typing.Literal:
        yield from map(str, arguments)
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _words(argument)
    elif origin is list:
        yield f"list of {' | '.join(dict.fromkeys(_words(arguments[0])))}"
    elif origin is dict:
        yield "mapping"
    elif isinstance(annotation, type) and issubclass(annotation, AnySource):
        yield "source"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield f"{{{', '.join(annotation.model_fields)}}}"
    elif annotation is not types.NoneType:
        yield {"str": "text", "int": "whole number", "float": "number", "bool": "true | false"}[annotation.__name__]


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "(needed)"
    value = info.get_default(call_default_factory=True)
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _within(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _short(text: str, *, limit: int = 160) -> str:
    """Cut a help text after its first sentence or at the limit."""
    first = re.split(r"(?<=[a-z)`])\. ", text, maxsplit=1)[0].rstrip(".")
    return first if len(first) <= limit else f"{first[: limit - 1].rsplit(' ', 1)[0]} …"


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe; a stage's shape depends on its `kind`."""
    definitions: dict[str, Any] = {}
    variants = []
    for kind in stages.STAGES:
        settings = stages.load(kind).Settings
        shape = settings.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= shape.pop("$defs", {})
        for name, info in settings.model_fields.items():
            for extra in info.metadata:
                if isinstance(extra, Passthrough):
                    shape["properties"][name] = _passthrough_schema(extra)
            if "Source" in repr(info.annotation):  # a bare text is a stage's name, a lone source a list of one
                full = shape["properties"][name]
                names = {"type": "array", "items": {"anyOf": [{"type": "string"}, _lone(full)]}, "minItems": 1}
                shape["properties"][name] = {"anyOf": [{"type": "string"}, _lone(full), full, names]}
        shape["required"] = sorted({"kind", *shape.get("required", ())})
        variants.append(shape)
    top = recipes.RecipeFile.model_json_schema()
    named = {"patternProperties": {STAGE_NAME: {"oneOf": variants}}, "additionalProperties": False}
    top["properties"]["stages"] |= named
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **top, "title": "llmpipe recipe", "$defs": definitions}


def _lone(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one item where a list of sources is meant."""
    lists = [part["items"] for part in schema.get("anyOf", [schema]) if "items" in part]
    return lists[0] if lists else {"type": "object"}


def _passthrough_schema(extra: Passthrough) -> dict[str, Any]:
    options = passthrough.options_of(extra.config_class)
    free = {name: {"description": option.help} for name, option in options.items() if name not in extra.reserved}
    return {"type": "object", "properties": free, "additionalProperties": False}


def write_recipe(path: Path, like: str, *, as_json: bool) -> None:
    """Copy a shipped recipe, comments and all, as a start for one's own."""
    shipped = recipes.shipped_recipes()
    if like not in shipped:
        near = did_you_mean(like, list(shipped))
        raise UsageError(f"no shipped recipe is called '{like}'{near}", hint=f"shipped recipes: {', '.join(shipped)}")
    if path.exists():
        hint = "give another name: llmpipe init NAME.yaml"
        raise UsageError(f"{path} is there already; nothing was written", hint=hint)
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no folder; nothing was written", hint=f"mkdir -p {path.parent}")
    text = shipped[like].read_text(encoding="utf-8")
    beside = sorted(set(re.findall(r"function: ([\w-]+\.py):", text)))
    for name in beside:
        if (path.parent / name).exists():
            raise UsageError(f"{path.parent / name} is there already; nothing was written", hint="name another folder")
    for name in beside:
        write_text(path.parent / name, (shipped[like].parent / name).read_text(encoding="utf-8"))
    write_text(path, re.sub(r"^name: .*$", f"name: {name_from(path.stem)}", text, count=1, flags=re.MULTILINE))
    if as_json:
        console.as_json({"written": str(path), "like": like, "beside": [str(path.parent / name) for name in beside]})
        return
    with_code = f", with {' and '.join(beside)}, which it runs" if beside else ""
    console.say(f"{path} is written, a copy of {like}{with_code}")
    allowed = " --allow-code" if beside else ""
    console.say(f"  check  llmpipe plan {path}\n  run    llmpipe run {path}{allowed}")
