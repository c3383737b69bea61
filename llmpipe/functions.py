"""Reward functions of the user's, `FILE.py:NAME`: found in their file by reading it. Nothing here runs the file."""

from __future__ import annotations

import ast
from pathlib import Path

from llmpipe.data.rows import shown
from llmpipe.errors import did_you_mean

CALLED_WITH = {"prompts", "answers"}
IF_TAKEN = {"references"}
"""What a function gets as well, where it takes it: the answers that the rows of the data give."""


def split(function: str) -> tuple[str, str]:
    """Return the file and the name of `FILE.py:NAME`."""
    file, _, name = function.rpartition(":")
    return file, name


def absolute(function: str, base: Path) -> str:
    """Return `FILE.py:NAME` with its file made absolute; it is relative to `base`."""
    file, name = split(function)
    return f"{(base / file).absolute()}:{name}"


def problem_with(function: str, base: Path) -> str | None:
    """Say why `FILE.py:NAME` cannot be a reward function, as far as reading the file can tell."""
    file, name = split(function)
    path = base / file
    if not path.is_file():
        near = did_you_mean(path.name, [other.name for other in path.parent.glob("*.py")])
        return f"no such file: {shown(path)}{near}"
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:  # the latter for null bytes
        where = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        return f"{shown(path)}{where} is not Python: {error.msg if isinstance(error, SyntaxError) else error}"
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if name not in found and name not in _other_names(tree):
        known = f"; it has {', '.join(found)}" if found else "; it has none"
        return f"{shown(path)} has no function '{name}'{did_you_mean(name, list(found)) or known}"
    if name in found and not _takes(found[name].args):
        line = f"{shown(path)}:{found[name].lineno}"
        return f"{line}: {name} must take `prompts` and `answers`, may take `references`, and need nothing else"
    return None


def _other_names(tree: ast.Module) -> set[str]:
    """Return what a file defines at its top level in other ways than `def`; it may be a function, too."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def _takes(arguments: ast.arguments) -> bool:
    """Tell whether a function can be called with the keywords `prompts` and `answers`, `references` or not."""
    optional = {a.arg for a in arguments.args[len(arguments.args) - len(arguments.defaults) :]}
    optional |= {a.arg for a, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value}
    named = {a.arg for a in (*arguments.args, *arguments.kwonlyargs)}
    knows_both = arguments.kwarg is not None or named >= CALLED_WITH
    return knows_both and named - optional <= CALLED_WITH | IF_TAKEN and not arguments.posonlyargs
