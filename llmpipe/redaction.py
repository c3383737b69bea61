"""Secrets stay out of what is written: refused in recipes, which are kept with every run, and blotted out of logs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmpipe.curation.identifiers import KEY, LEAST_CHARACTERS
from llmpipe.errors import Problem
from llmpipe.yaml_tree import KeyPath, Tree

IN_URL = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
SECRET_NAME = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS|API_?KEY|ACCESS_?KEY(?:_ID)?|PRIVATE_?KEY)$")
LEAST_LETTERS = 8
"""Of the value of a variable: a shorter one may be any word."""
BLOT = "[redacted]"


def secret_in(text: str) -> str | None:
    """Return how a secret in a text begins, where there is one: the key of a service, or a password in an address."""
    keys = (match[0] for match in KEY.finditer(text) if len(set(match[0])) >= LEAST_CHARACTERS)
    found = next(keys, None) or next((match[0] for match in IN_URL.finditer(text)), None)
    return None if found is None else f"{found[:3]}…"


def redacted(text: str) -> str:
    """Blot out the keys of services, passwords in addresses, and what the environment calls a secret."""
    for value in _of_environment():
        text = text.replace(value, BLOT)
    text = KEY.sub(lambda match: BLOT if len(set(match[0])) >= LEAST_CHARACTERS else match[0], text)
    return IN_URL.sub(BLOT, text)


def _of_environment() -> list[str]:
    named = [value for name, value in os.environ.items() if SECRET_NAME.search(name.upper())]
    return sorted((value for value in named if len(value) >= LEAST_LETTERS), key=len, reverse=True)


def redact_file(path: Path) -> None:
    """Blot secrets out of a log that libraries wrote into; it is written anew only where there are any."""
    if path.is_file():
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        clean = redacted(text)
        if clean != text:
            temporary = path.with_name(f"{path.name}.tmp")
            temporary.write_bytes(clean.encode("utf-8", "surrogateescape"))
            temporary.replace(path)


def problems(tree: Tree) -> Iterator[Problem]:
    """Find secrets in a recipe; the line is not shown, for it may end in the log of a CI."""
    for path, value in _texts(tree.data, ()):
        if begin := secret_in(value):
            message = f"looks like a secret ({begin}); a recipe is kept with its run, so give it by the environment"
            yield replace(tree.problem(path, message), excerpt=None)


def _texts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(part, (*path, key))
