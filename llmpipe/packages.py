"""Packages that a plan's files need and that may be missing: they are looked for before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmpipe.data.rows import needed, shown
from llmpipe.errors import Problem, UsageError
from llmpipe.plan import Step


def refuse_without_gguf(steps: Sequence[Step]) -> None:
    """Refuse to begin from GGUF files where the package that reads them is missing.

    Raises:
        UsageError: a step that is not skipped would read one.
    """
    if find_spec("gguf") is not None:
        return
    problems = [
        Problem(
            f"stage {step.name} needs the package gguf to read it, which is not installed",
            where=shown(Path(entry.source["gguf"])),
        )
        for step in steps
        for entry in (step.record.inputs if step.action not in ("skip", "wait") else ())
        if "gguf" in entry.source
    ]
    if problems:
        raise UsageError(problems, hint="pip install gguf")


def refuse_without_readers(steps: Sequence[Step]) -> None:
    """Refuse to begin where web pages, books or packed files are to be read and what reads them is missing.

    Raises:
        UsageError: a step that is not skipped would read one; the first file of each kind is named.
    """
    first: dict[str, Problem] = {}
    for step in steps:
        for entry in step.record.inputs if step.action not in ("skip", "wait") else ():
            for file in map(Path, entry.files):
                for module in needed(file) - first.keys():
                    if not is_there(module):
                        what = f"stage {step.name} needs the package {module} to read it, which is not installed"
                        first[module] = Problem(what, where=shown(file))
    if first:
        raise UsageError(list(first.values()), hint="pip install 'llmpipe[data]'")


def refuse_without_curators(steps: Sequence[Step]) -> None:
    """Refuse to begin where a curate stage asks for a package that is missing: datatrove here, or presidio.

    Raises:
        UsageError: a step that is not skipped would use one.
    """
    first: dict[str, Problem] = {}
    for step in steps:
        if step.record.kind == "curate" and step.action not in ("skip", "wait"):
            for module in _asked_for(step.record.settings):
                if module not in first and not is_there(module):
                    first[module] = Problem(f"stage {step.name} needs the package {module}, which is not installed")
    if first:
        raise UsageError(list(first.values()), hint=" ".join(EXTRAS[module] for module in first))


EXTRAS = {"datatrove": "pip install 'llmpipe[datatrove]'"}


def _asked_for(settings: dict[str, Any]) -> Iterator[str]:
    """Yield the packages of a curate stage's settings; a pipeline for a cluster is only written here."""
    if (settings.get("engine") or {}).get("executor") == "local":
        yield "datatrove"


def is_there(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False
