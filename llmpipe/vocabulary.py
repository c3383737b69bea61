"""What may be written in a recipe: lists of options, the JSON Schema, recipes to start from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from llmpipe import console, passthrough, stages
from llmpipe import recipe as recipes
from llmpipe.artifact import write_text
from llmpipe.errors import UsageError, did_you_mean
from llmpipe.settings import Passthrough


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
    cells = [(row["key"], row["type"], row["default"], _short(row["help"])) for row in rows]
    table = console.table(cells, header=("key", "type", "default", "meaning"))
    for column, width in ((0, 40), (1, 24), (2, 18)):
        table.columns[column].max_width = width
    console.show(table, to_stdout=True, indent=0)


def option_rows(kind: str) -> list[dict[str, str]]:
    """Return every key that a stage understands: key, type, default, help; reserved ones are left out."""
    rows = []
    for name, info in stages.load(kind).Settings.model_fields.items():
        extra = next((extra for extra in info.metadata if isinstance(extra, Passthrough)), None)
        if extra is None:
            rows.append({"key": name, "type": _type(info), "default": _default(info), "help": info.description or ""})
            continue
        for option in passthrough.options_of(extra.config_class).values():
            if option.name not in extra.reserved:
                key = f"{name}.{option.name}"
                rows.append({"key": key, "type": option.type, "default": option.default, "help": option.help})
    return rows


def _type(info: FieldInfo) -> str:
    """Name a field's type the way a recipe's author would."""
    text = repr(info.annotation)
    if "Source" in text:
        return "list of sources" if "list[" in text else "source"
    choices = re.findall(r"Literal\[([^\]]*)\]", text)
    if choices:
        return " | ".join(part.strip().strip("'") for part in choices[0].split(","))
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    return re.sub(r"(?:typing|llmpipe\.[\w.]+)\.", "", text).removesuffix(" | None")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "(needed)"
    value = info.get_default(call_default_factory=True)
    return "" if value is None else str(value)


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
                shape["properties"][name] = {"anyOf": [{"type": "string"}, _lone(shape["properties"][name]), shape["properties"][name]]}
        shape["required"] = sorted({"kind", *shape.get("required", ())})
        variants.append(shape)
    top = recipes.RecipeFile.model_json_schema()
    top["properties"]["stages"] |= {"additionalProperties": {"oneOf": variants}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "title": "llmpipe recipe", "$defs": definitions}


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
        raise UsageError(f"{path} is there already; nothing was written", hint="give another name: llmpipe init NAME.yaml")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no folder")
    text = shipped[like].read_text(encoding="utf-8")
    name = re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_0123456789") or "mine"
    write_text(path, re.sub(r"^name: .*$", f"name: {name}", text, count=1, flags=re.MULTILINE))
    if as_json:
        console.as_json({"written": str(path), "like": like})
        return
    console.say(f"{path} is written, a copy of {like}")
    console.say(f"  check  llmpipe plan {path}\n  run    llmpipe run {path}")
