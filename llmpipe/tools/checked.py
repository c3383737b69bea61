"""Arguments of a call, checked against the schema of its tool.

Schemas of MCP servers are foreign: they load nothing from elsewhere, and their regular expressions, which may take
for ever, are left to the server that wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from llmpipe.errors import TalkError
from llmpipe.tools.fence import one_line
from llmpipe.tools.tool import Tool

LONGEST = 100_000
"""The most characters of arguments."""
SHOWN = 3
"""How many mistakes a model is told of at once."""
# extend() takes None for a keyword that is not looked at; its types do not say so (jsonschema 4.26)
_Validator: Any = extend(Draft202012Validator, {"pattern": None, "patternProperties": None})


def mistake_in_schema(schema: Mapping[str, Any]) -> str | None:
    """Return why a schema cannot be used, if it cannot."""
    if schema.get("type") != "object":
        return "its parameters are no object"
    try:
        Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError) as error:
        return one_line(f"its parameters are no JSON schema: {getattr(error, 'message', error)}", 200)
    return None


def parsed(tool: Tool, arguments: str) -> dict[str, Any]:
    """Return the arguments that a model wrote.

    Raises:
        TalkError: they are no JSON object, or not what the tool takes; it says the right form.
    """
    if len(arguments) > LONGEST:
        raise TalkError(f"the arguments have more than {LONGEST:,} characters", hint=form(tool))
    try:
        found = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError) as error:
        raise TalkError(f"the arguments are not JSON: {error}", hint=form(tool)) from error
    if not isinstance(found, dict):
        raise TalkError("the arguments are no JSON object", hint=form(tool))
    if wrong := _mistakes(tool, found):
        raise TalkError("; ".join(wrong), hint=form(tool))
    return found


def form(tool: Tool) -> str:
    """Return how a tool is called: `calculator takes {"expression": string}`."""
    properties = tool.parameters.get("properties") or {}
    needed = tool.parameters.get("required") or []
    parts = [
        f'"{name}": {_kind(schema)}' + ("" if name in needed else " (may be left out)")
        for name, schema in properties.items()
    ]
    return one_line(f"{tool.name} takes {{{', '.join(parts)}}}", 500)


def _kind(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "anything"
    if "enum" in schema:
        return "one of " + ", ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"][:8])
    kinds = schema.get("type", "anything")
    return kinds if isinstance(kinds, str) else " or ".join(map(str, kinds))


def _mistakes(tool: Tool, arguments: dict[str, Any]) -> list[str]:
    """Return what is wrong with arguments, a line each."""
    validator = _Validator(tool.parameters, registry=Registry())  # without one, jsonschema loads what a $ref names
    try:
        found = sorted(validator.iter_errors(arguments), key=lambda error: [str(part) for part in error.path])
    except (RecursionError, Unresolvable) as error:
        return [one_line(f"the schema of {tool.name} cannot be used: {error}", 200)]
    return [_told(error) for error in found[:SHOWN]]


def _told(error: ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    return one_line(f"{where}: {error.message}" if where else error.message, 200)
