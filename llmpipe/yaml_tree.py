"""Read YAML so that every value remembers where it stands.

ruamel.yaml's safe pure loader reads YAML 1.2 (`2e-5` is a number, `no` is text). We compose nodes and build plain
Python values from them ourselves, because only nodes carry positions, and because one pass can then report every
duplicate key and foreign tag rather than the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmpipe.errors import Problem, RecipeError

KeyPath = tuple[str | int, ...]
"""Where a value stands: `("stages", "base", "trainer", "max_steps")`."""

MAX_BYTES = 2**18
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
    text: str = ""
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

    def relabel(self, path: KeyPath, where: str) -> None:
        """Say that a value comes from the command line: problems with it then name `where` instead of a line."""
        for marks in (self.keys, self.values):
            for stale in [known for known in marks if known[: len(path)] == path]:
                del marks[stale]
            marks[path] = Mark(where, 0, 0, 0)


def assign(document: Any, path: Sequence[str], value: Any) -> str | None:
    """Set one value in nested mappings, making those that are missing; return what is in the way, if anything."""
    for depth, key in enumerate(path[:-1], start=1):
        if document.get(key) is None:
            document[key] = {}
        document = document[key]
        if not isinstance(document, dict):
            return f"{'.'.join(path[:depth])} is not a mapping, so {path[depth]} cannot be set in it; set it as a whole"
    document[path[-1]] = value
    return None


def read(path: Path, *, shown_as: str | None = None) -> Tree:
    """Read a YAML file.

    Raises:
        RecipeError: the file is missing, is not UTF-8 or YAML, repeats a key, or uses tags.
    """
    name = shown_as or str(path)
    try:
        with path.open("rb") as file:  # no more of it than is needed to tell: it may be /dev/zero
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(Problem("no such file", where=name)) from None
    except IsADirectoryError:
        raise RecipeError(Problem("is a folder, not a recipe", where=name)) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(Problem("is not UTF-8 text; save it as UTF-8", where=f"{name}:{line}")) from None
    except OSError as error:
        raise RecipeError(Problem(f"cannot be read: {error.strerror}", where=name)) from None
    if len(content) > MAX_BYTES:
        raise RecipeError(Problem("has more than 256 kB, which is beyond any real recipe", where=name))
    return parse(text, shown_as=name)


def parse(text: str, *, shown_as: str) -> Tree:
    """Build a tree from YAML text; `shown_as` names it in errors."""
    tree = Tree(file=shown_as, text=text, lines=text.splitlines() or [""])
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{shown_as}:{mark.line + 1}:{mark.column + 1}" if mark else shown_as
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(Problem(f"is not YAML: {reason}", where=where)) from None
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
        # nothing is written for an empty value: its key is what one can point at
        empty = node.start_mark.index == node.end_mark.index
        self.tree.values[path] = self.tree.keys.get(path, self.mark(node)) if empty else self.mark(node)
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise RecipeError(self.tree.problem(path[:1], "is nested or repeated (by aliases) beyond any real recipe"))
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            if node.tag != "tag:yaml.org,2002:seq":
                self.foreign(node, path)
            return [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        if node.tag == "tag:yaml.org,2002:timestamp":
            return node.value  # a date is just text to a recipe
        if node.tag not in _SCALARS:
            self.foreign(node, path)
            return None
        try:
            return self.yaml.constructor.construct_object(node)
        except ValueError:  # only where a tag asks for it, as in `!!int abc`
            self.problems.append(self.tree.problem(path, f"{node.value!r} is not what its tag says"))
            return None

    def mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if node.tag != "tag:yaml.org,2002:map":
            self.foreign(node, path)
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.tree.keys[*path, "?"] = self.mark(key_node)
                self.problems.append(self.tree.problem((*path, "?"), "a key must be a single word", at_key=True))
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in result:
                first = self.tree.keys[here].line
                self.tree.keys[here] = self.mark(key_node)
                self.problems.append(self.tree.problem(here, f"is set twice; first in line {first}", at_key=True))
                continue
            self.tree.keys[here] = self.mark(key_node)
            if key == "<<":
                message = "merge keys are not supported; write the keys out"
                self.problems.append(self.tree.problem(here, message, at_key=True))
            result[key] = self.value(value_node, here)
        return result

    def foreign(self, node: Node, path: KeyPath) -> None:
        tag = str(node.tag).replace("tag:yaml.org,2002:", "!!")
        self.problems.append(self.tree.problem(path, f"tag {tag} is not allowed; a recipe holds plain values"))
