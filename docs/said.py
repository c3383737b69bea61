"""What a stage's code says when something is wrong; read from the source, not run.

A stage can say what stands in the functions that its `run` leads to: names are followed from function to function, in
imports too, as far as they can be told without running anything. What a message fills in is written as `…`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "llmpipe"
FAILURES = frozenset({"StageError", "DataError", "UsageError", "DivergedError"})
REFUSALS = frozenset({"ValueError", "PydanticCustomError"})
"""What pydantic turns into problems of a recipe."""
FILLED = "…"
DEEPEST = 6
"""Names that stand for texts that stand for texts; more than any message has."""

Key = tuple[str, str]
"""A module, and a name at its top level."""


@dataclass(frozen=True, order=True)
class Said:
    """A message, and what to do about it."""

    message: str
    advice: str = ""


@dataclass(frozen=True)
class Module:
    """The top level of a module: what it defines, and where what it imports comes from (also inside functions)."""

    defined: dict[str, ast.stmt]
    imported: dict[str, Key]


@cache
def modules() -> dict[str, Module]:
    """Read the whole package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(["llmpipe", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        found[name] = _module(ast.parse(path.read_text(encoding="utf-8")))
    return found


def _module(tree: ast.Module) -> Module:
    defined: dict[str, ast.stmt] = {}
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                defined[name] = node
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                defined[name] = node
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                pairs = zip(names, values, strict=True)
                defined |= {n.id: ast.Assign([n], value) for n, value in pairs if isinstance(n, ast.Name)}
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("llmpipe")
        for alias in node.names
    }
    return Module(defined, imported)


@cache
def find(module: str, name: str) -> Key | None:
    """Find where a name of a module is defined; a module's own key has no name in it."""
    for _ in range(DEEPEST):
        if module not in modules():
            return None
        if name in modules()[module].defined:
            return module, name
        if f"{module}.{name}" in modules():
            return f"{module}.{name}", ""
        if name not in modules()[module].imported:
            return None
        module, name = modules()[module].imported[name]
    return None


def reached(start: Iterable[Key], *, annotations: bool = False) -> list[Key]:
    """Return the functions, classes and constants that a start leads to, itself included."""
    waiting, found = [key for key in start if find(*key)], dict[Key, None]()
    while waiting:
        key = find(*waiting.pop())
        if key and key[1] and key not in found:
            found[key] = None
            waiting += _used(key, annotations=annotations)
    return list(found)


@cache
def _used(key: Key, *, annotations: bool) -> tuple[Key, ...]:
    return tuple(_names_in(key, annotations=annotations))


def _names_in(key: Key, *, annotations: bool) -> Iterator[Key]:
    module, name = key
    for node in _walk(modules()[module].defined[name], annotations=annotations):
        if isinstance(node, ast.Name):
            yield module, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            inside = find(module, node.value.id)
            if inside and not inside[1]:
                yield inside[0], node.attr


def _walk(node: ast.AST, *, annotations: bool) -> Iterator[ast.AST]:
    """Walk through a tree; what annotations name is not run."""
    yield node
    for part, value in ast.iter_fields(node):
        if part in ("annotation", "returns") and not annotations:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child, annotations=annotations)


def failures(keys: Iterable[Key]) -> set[Said]:
    """Find what is said while a stage runs; only errors that say what to do, for the others say all they know."""
    return {said for key in keys for said in _failures(key)}


@cache
def _failures(key: Key) -> set[Said]:
    found = set()
    for call, scope in _calls(key, FAILURES):
        hints = [keyword.value for keyword in call.keywords if keyword.arg == "hint"]
        message = text(call.args[0], scope) if call.args else None
        advice = text(hints[0], scope) if hints else None
        if message and advice and _tells(message) and _tells(advice, least=1):
            found.add(Said(message.splitlines()[0], advice))
    return found


def refusals(keys: Iterable[Key]) -> set[Said]:
    """Find what is said of a recipe's stage before anything runs; what is wrong with a type is said by pydantic."""
    return {said for key in keys if key[0] != "llmpipe.passthrough" for said in _refusals(key)}


@cache
def _refusals(key: Key) -> set[Said]:
    found = set()
    for call, scope in _calls(key, REFUSALS):
        is_ours = _name(call.func) == "PydanticCustomError"
        message = text(call.args[is_ours], scope) or ""
        found.add(re.sub(r"\{\w+\}", FILLED, message) if is_ours else message)
    node = modules()[key[0]].defined[key[1]]
    if key[1].endswith("_problem") and isinstance(node, ast.FunctionDef):
        found |= {text(one.value, Scope(key[0], node)) or "" for one in ast.walk(node) if isinstance(one, ast.Return)}
    return {Said(message.replace(FILLED * 2, FILLED)) for message in found if _tells(message)}


def files(keys: Iterable[Key]) -> list[str]:
    """Find the files that a stage hands over: those that the functions name which return a `Result`."""
    handing = [key for key in keys if any(_calls(key, frozenset({"Result"})))]
    return sorted(name for name in texts(handing) if re.fullmatch(r"\w+\.(json|jsonl|svg)", name))


def texts(keys: Iterable[Key]) -> set[str]:
    """Return all texts that stand in these functions and constants."""
    nodes = (node for module, name in keys for node in ast.walk(modules()[module].defined[name]))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@dataclass(frozen=True)
class Scope:
    """Where a text stands: names in it are looked up in the function, then in the module."""

    module: str
    function: ast.stmt


def _calls(key: Key, names: frozenset[str]) -> Iterator[tuple[ast.Call, Scope]]:
    """Yield the calls of these names in a definition, each with the innermost function around it."""
    return ((call, scope) for call, scope in _all_calls(key) if _name(call.func) in names)


@cache
def _all_calls(key: Key) -> list[tuple[ast.Call, Scope]]:
    definition = modules()[key[0]].defined[key[1]]
    found, waiting = [], [(definition, Scope(key[0], definition))]
    while waiting:
        node, scope = waiting.pop()
        if isinstance(node, ast.FunctionDef):
            scope = Scope(key[0], node)
        elif isinstance(node, ast.Call):
            found.append((node, scope))
        waiting += [(child, scope) for child in ast.iter_child_nodes(node)]
    return found


def _name(called: ast.expr) -> str:
    return called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""


def text(node: ast.expr | None, scope: Scope, depth: int = 0) -> str | None:
    """Return a text as far as the source has it; None where it is made elsewhere."""
    if depth > DEEPEST:
        return None
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=parts):
            return "".join(FILLED if (one := text(part, scope, depth + 1)) is None else one for part in parts)
        case ast.FormattedValue(value=value) if not isinstance(value, ast.Constant):
            inside = text(value, scope, depth + 1)
            return inside if inside is not None and FILLED not in inside else None
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return "".join(text(part, scope, depth + 1) or FILLED for part in (left, right))
        case ast.IfExp(body=body, orelse=other):
            found = [one for part in (body, other) if (one := text(part, scope, depth + 1))]
            return ", or ".join(dict.fromkeys(found)) or None
        case ast.Call(func=ast.Name(id="did_you_mean")):
            return ""
        case ast.Call(func=ast.Name(id="Problem"), args=[first, *_]):
            return text(first, scope, depth + 1)
        case ast.Subscript(value=value) | ast.Call(func=ast.Attribute(value=value, attr="splitlines" | "strip")):
            return text(value, scope, depth + 1) if not isinstance(value, ast.Name) else None
        case ast.List(elts=[only]) | ast.Call(func=ast.Name(id="str"), args=[only]):
            return text(only, scope, depth + 1)
        case ast.Name(id=name):
            return _named(name, scope, depth + 1)
    return None


def _named(name: str, scope: Scope, depth: int) -> str | None:
    """Return the text that a name stands for: the last one that its function gives it, or a constant's."""
    given = None
    for node in ast.walk(scope.function):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                given = value
            case ast.NamedExpr(target=ast.Name(id=target), value=value) if target == name:
                given = value
    if given is not None:
        return text(given, scope, depth)
    key = find(scope.module, name)
    node = modules()[key[0]].defined.get(key[1]) if key else None
    return text(node.value, Scope(key[0], node), depth) if key and isinstance(node, ast.Assign) else None


def _tells(message: str, *, least: int = 3) -> bool:
    """Whether a message is more than what was filled in; advice may be as short as `packing: false`."""
    words = len(re.findall(r"[\w'`-]*[A-Za-z][\w'`-]*", message))
    return words >= least and words >= 1.5 * message.count(FILLED)
