"""Read YAML so that every value remembers where it stands.

ruamel.yaml's safe pure loader reads YAML 1.2 (`2e-5` is a number, `no` is text). We compose nodes and build plain
Python values from them ourselves, because only nodes carry positions, and because one pass can then report every
duplicate key and foreign tag rather than the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmpipe.errors import Problem, RecipeError

KeyPath = tuple[str | int, ...]
"""Where a value stands: `("stages", "base", "trainer", "max_steps")`."""

MAX_NODES = 20_000  # an alias bomb expands to millions of nodes; the largest real recipe has hundreds
MAX_DEPTH = 40
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}


@dataclass(frozen=True)
class Mark:
    """A place in a file, lines and columns counted from 1."""

    where: str
    line: int
    column: int
    width: int


@dataclass
class Tree:
    """The values of a YAML file, and the marks of its keys and values by their path."""

    file: str
    data: Any = None
    lines: list[str] = field(default_factory=list)
    keys: dict[KeyPath, Mark] = field(default_factory=dict)
    values: dict[KeyPath, Mark] = field(default_factory=dict)

    def problem(self, path: KeyPath, message: str, *, at_key: bool = False) -> Problem:
        """Put a message at a key or at its value; at the nearest parent where the path itself is not written."""
        marks, wanted = (self.keys if at_key else self.values), path
        while wanted and wanted not in marks:
            wanted, marks = wanted[:-1], self.keys
        mark = marks.get(wanted)
        dotted = ".".join(map(str, path)) or None
        if mark is None:
            return Problem(message, where=self.file, path=dotted)
        if mark.line == 0:  # an override from the command line
            return Problem(message, where=mark.where, path=dotted)
        line = self.lines[mark.line - 1]
        number = str(mark.line)
        caret = "^" * max(1, min(mark.width, len(line) - mark.column + 1))
        excerpt = (f"{number} | {line}", f"{' ' * len(number)} | {' ' * (mark.column - 1)}{caret}")
        return Problem(message, where=f"{mark.where}:{mark.line}:{mark.column}", path=dotted, excerpt=excerpt)

    def set(self, path: KeyPath, value: Any, *, where: str) -> None:
        """Override one value; its mark then names the command line. Missing mappings on the way are made."""
        target = self.data
        for depth, key in enumerate(path[:-1]):
            if not isinstance(target, dict):
                break
            target = target.setdefault(key, {})
            if target is None:
                raise RecipeError(self.problem(path[: depth + 1], f"is empty, so {where} cannot set a key in it"))
        if not isinstance(target, dict):
            dotted = ".".join(map(str, path[:-1]))
            raise RecipeError(Problem(f"{dotted} holds no keys, so it cannot be set", where=where))
        target[path[-1]] = value
        for marks in (self.keys, self.values):
            for stale in [known for known in marks if known[: len(path)] == path]:
                del marks[stale]
            marks[path] = Mark(where, 0, 0, 0)


def read(path: Path, *, shown_as: str | None = None) -> Tree:
    """Read a YAML file.

    Raises:
        RecipeError: the file is missing, is not UTF-8 or YAML, repeats a key, or uses tags.
    """
    name = shown_as or str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(Problem("no such file", where=name)) from None
    except IsADirectoryError:
        raise RecipeError(Problem("is a folder, not a recipe", where=name)) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(Problem("is not UTF-8 text; save it as UTF-8", where=f"{name}:{line}")) from None
    except OSError as error:
        raise RecipeError(Problem(f"cannot be read: {error.strerror}", where=name)) from None
    return parse(text, shown_as=name)


def parse(text: str, *, shown_as: str) -> Tree:
    """Build a tree from YAML text; `shown_as` names it in errors."""
    tree = Tree(file=shown_as, lines=text.splitlines() or [""])
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{shown_as}:{mark.line + 1}:{mark.column + 1}" if mark else shown_as
        raise RecipeError(Problem(f"is not YAML: {error.problem or error.context}", where=where)) from None
    except (YAMLError, RecursionError) as error:
        raise RecipeError(Problem(f"is not YAML: {error}".splitlines()[0], where=shown_as)) from None
    if root is None:
        raise RecipeError(Problem("is empty", where=shown_as), hint="llmpipe init writes a recipe to start from")
    builder = _Builder(tree, yaml)
    tree.data = builder.value(root, ())
    if builder.problems:
        raise RecipeError(builder.problems)
    return tree


class _Builder:
    """Walks composed nodes once, building values and marks and collecting problems."""

    def __init__(self, tree: Tree, yaml: YAML) -> None:
        self.tree, self.yaml, self.nodes = tree, yaml, 0
        self.problems: list[Problem] = []

    def mark(self, node: Node) -> Mark:
        start, end = node.start_mark, node.end_mark
        width = end.column - start.column if end.line == start.line else 1
        return Mark(self.tree.file, start.line + 1, start.column + 1, width)

    def value(self, node: Node, path: KeyPath) -> Any:
        self.nodes += 1
        self.tree.values[path] = self.mark(node)
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise RecipeError(self.tree.problem(path, "is nested or repeated (by aliases) beyond any real recipe"))
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        if node.tag == "tag:yaml.org,2002:timestamp":
            return node.value  # a date is just text to a recipe
        if node.tag not in _SCALARS:
            self.problems.append(self.tree.problem(path, f"tag {node.tag} is not allowed; a recipe holds plain values"))
            return None
        return self.yaml.constructor.construct_object(node)

    def mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if node.tag != "tag:yaml.org,2002:map":
            self.problems.append(self.tree.problem(path, f"tag {node.tag} is not allowed; a recipe holds plain values"))
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = (*path, key)
            if key in result:
                first = self.tree.keys[here].line
                self.tree.keys[here] = self.mark(key_node)
                self.problems.append(self.tree.problem(here, f"is set twice; first in line {first}", at_key=True))
                continue
            self.tree.keys[here] = self.mark(key_node)
            if key == "<<":
                self.problems.append(self.tree.problem(here, "merge keys are not supported; write the keys out", at_key=True))
            result[key] = self.value(value_node, here)
        return result
