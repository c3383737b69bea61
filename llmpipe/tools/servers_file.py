"""The file that names MCP servers, as other programs have it: JSON, or YAML, with `mcpServers`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from llmpipe import yaml_tree
from llmpipe.errors import Problem, UsageError, did_you_mean
from llmpipe.yaml_tree import KeyPath, Tree

TOP = "mcpServers"
KEYS = ("command", "args", "env", "type")
NAME = re.compile(r"[A-Za-z0-9-]+(_[A-Za-z0-9-]+)*")
"""Without two underscores in a row, which end the server's part of a tool's name."""
LONGEST_NAME = 30
EXAMPLE = '{"mcpServers": {"files": {"command": "files-server", "args": ["--read-only"], "env": {"KEY": "…"}}}}'


@dataclass(frozen=True)
class Program:
    """A server: what is run, a word at a time and by no shell, and what its environment has besides the usual."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


def configured(path: Path) -> list[Program]:
    """Read the file.

    Raises:
        UsageError: it is missing, or not as it has to be; with all that is wrong.
    """
    tree = yaml_tree.read(path)
    servers = tree.data.get(TOP) if isinstance(tree.data, dict) else None
    if not isinstance(servers, dict) or not servers:
        raise UsageError(Problem(f"names no {TOP}", where=str(path)), hint=EXAMPLE)
    problems: list[Problem] = []
    programs = [_program(tree, name, entry, problems) for name, entry in servers.items()]
    if problems:
        raise UsageError(problems, hint=EXAMPLE)
    return programs


def _program(tree: Tree, name: str, entry: Any, problems: list[Problem]) -> Program:
    here: KeyPath = (TOP, name)
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        wrong = f"a server's name has up to {LONGEST_NAME} letters, digits, - and single _"
        problems.append(tree.problem(here, wrong, at_key=True))
    if not isinstance(entry, dict):
        problems.append(tree.problem(here, "a server is a mapping with a command"))
        return Program(name, (), {})
    for key in entry:
        if key == "url":
            problems.append(tree.problem((*here, key), "only servers that are programs can be used", at_key=True))
        elif key not in KEYS:
            near = did_you_mean(key, KEYS) or f"; there are {', '.join(KEYS)}"
            problems.append(tree.problem((*here, key), f"is not known{near}", at_key=True))
    if entry.get("type", "stdio") != "stdio":
        problems.append(tree.problem((*here, "type"), "only stdio can be used"))
    command, arguments, environment = entry.get("command"), entry.get("args", []), entry.get("env", {})
    words = [command] if isinstance(command, str) else command
    if not _are_texts(words) or not any(words[:1]):
        words = []
        problems.append(tree.problem((*here, "command"), "a command is a program, or a list of it and its arguments"))
    if not _are_texts(arguments):
        arguments = []
        problems.append(tree.problem((*here, "args"), "args is a list of texts; put quotes around numbers"))
    if not isinstance(environment, dict) or not _are_texts(list(environment.values())):
        problems.append(tree.problem((*here, "env"), "env has a text for each name; put quotes around numbers"))
    return Program(name, (*words, *arguments), environment)


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(part, str) and "\0" not in part for part in value)
