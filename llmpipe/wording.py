"""pydantic's findings in the words of a recipe's author: where in the file, what is wrong, what may be written."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from llmpipe import passthrough
from llmpipe.errors import did_you_mean
from llmpipe.settings import SOURCE_KEYS, STAGE_NAME, Passthrough
from llmpipe.yaml_tree import KeyPath


def yaml_path(raw: Any, loc: tuple[str | int, ...]) -> KeyPath:
    """Leave out of pydantic's location what is not in the file: the tags of unions, the index of a lone item."""
    path: list[str | int] = []
    for step, part in enumerate(loc, start=1):
        is_tag = part in _tags() and step < len(loc)
        if isinstance(raw, dict) and part in raw and not (is_tag and not isinstance(raw[str(part)], dict | list)):
            raw = raw[str(part)]
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
        elif isinstance(raw, dict) and part == loc[-1] and part not in _tags():
            pass  # a missing key: name it
        else:
            continue
        path.append(part)
    return tuple(path)


@cache
def _tags() -> set[str | int]:
    """Return what pydantic's locations have beside keys; to build the models of eval takes a while, if all is well."""
    from llmpipe.judging import JUDGES
    from llmpipe.tasks import TASK_KEYS, tag_of

    return {*SOURCE_KEYS, *map(tag_of, TASK_KEYS), *JUDGES, "[key]", 0}


_TYPES = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a text",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "list_type": "must be a list",
    "finite_number": "must be a finite number",
    "too_short": "is empty; write at least one",
    "string_too_short": "must not be empty",
}


def message_of(model: type[BaseModel], details: ErrorDetails) -> str:
    """Word pydantic's message the way a recipe's author speaks."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(model, details["loc"])
    if kind == "missing":
        return "is missing"
    of_a_whole = kind == "value_error" and isinstance(value, dict)
    if kind in ("too_short", "string_too_short") or of_a_whole or not details["loc"]:
        return _TYPES.get(kind, details["msg"].removeprefix("Value error, "))
    if kind in ("step", "task") or (kind == "source" and isinstance(value, dict)):
        return details["msg"]
    if kind == "union_tag_invalid":
        known = context["expected_tags"].replace("'", "")
        return f"`{context['tag']}:` does not fit here; it may be {' or '.join(known.rsplit(', ', 1))}"
    if kind == "string_pattern_mismatch" and context.get("pattern") == STAGE_NAME:
        message = "must be a name of lower-case letters, digits, - and _, beginning with a letter"
    elif kind == "string_pattern_mismatch" and details["loc"][-1] == "function":
        message = "write a function as FILE.py:NAME"
    elif kind == "string_pattern_mismatch" and details["loc"][-1] == "gguf":
        message = "write a file that ends in .gguf"
    else:
        message = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{_TYPES.get(kind, message)}, not {shown_value(value)}"


def shown_value(value: Any) -> str:
    """Show a value as it is written, in short."""
    if value is None:
        return "empty"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value) if isinstance(value, str) else json.dumps(value)


def _unknown_key(model: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    key = str(loc[-1])
    known = list(model.model_fields if len(loc) == 1 else _field_names(model.model_fields[str(loc[0])].annotation))
    for field, info in model.model_fields.items() if len(loc) == 1 else ():
        for extra in info.metadata:
            if isinstance(extra, Passthrough) and key in passthrough.options_of(extra.config_class):
                return f"unknown key; it is one of {extra.config_class.split('.')[-1]}, so write it under `{field}:`"
    return f"unknown key{did_you_mean(key, known) or '; known are ' + ', '.join(dict.fromkeys(known))}"


def _field_names(annotation: Any) -> Iterator[str]:
    """Yield the field names of all models within a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from annotation.model_fields
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated, list, dict):
        for argument in typing.get_args(annotation):
            yield from _field_names(argument)
