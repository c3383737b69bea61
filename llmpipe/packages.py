"""Packages that a plan's files need and that may be missing: they are looked for before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from llmpipe.data.rows import needed, shown
from llmpipe.errors import Problem, UsageError
from llmpipe.plan import Step

TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")
"""What `trainer.report_to` may name and is a package of the same name."""


def refuse_missing(steps: Sequence[Step]) -> None:
    """Refuse to begin where a step needs a package that is not installed.

    Raises:
        UsageError: with what to install.
    """
    refuse_without_gguf(steps)
    refuse_without_readers(steps)
    refuse_without_lm_eval(steps)
    refuse_without_datatrove(steps)
    refuse_without_trackers(steps)
    refuse_without_presidio(steps)


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


def refuse_without_lm_eval(steps: Sequence[Step]) -> None:
    """Refuse to begin where tasks of lm-eval are to be run and it is missing.

    Raises:
        UsageError: a step that is not skipped would run one; each is named.
    """
    if is_there("lm_eval"):
        return
    problems = [
        Problem(f"stage {step.name} needs the package lm_eval to run it, which is not installed", where=task["lm_eval"])
        for step in steps
        for task in (step.record.settings.get("tasks") or () if step.action not in ("skip", "wait") else ())
        if "lm_eval" in task
    ]
    if problems:
        raise UsageError(problems, hint="pip install 'llmpipe[eval]'")


def refuse_without_datatrove(steps: Sequence[Step]) -> None:
    """Refuse to begin where datatrove is to run here and it is missing; a pipeline for a cluster is only written here.

    Raises:
        UsageError: a step that is not skipped would use it.
    """
    needs = [
        step.name
        for step in steps
        if step.record.kind == "curate"
        and step.action not in ("skip", "wait")
        and (step.record.settings.get("engine") or {}).get("executor") == "local"
    ]
    if needs and not is_there("datatrove"):
        problem = Problem(f"stage {needs[0]} needs the package datatrove, which is not installed")
        raise UsageError(problem, hint="pip install 'llmpipe[datatrove]'")


def refuse_without_presidio(steps: Sequence[Step]) -> None:
    """Refuse to begin where presidio, or the model that tells it names, is missing: it would fetch the model itself.

    Raises:
        UsageError: a step that is not skipped would use it.
    """
    for step in steps:
        used = step.record.settings.get("steps") or () if step.record.kind == "curate" else ()
        for engine in filter(None, (one.get("engine") for one in used)):
            if step.action in ("skip", "wait"):
                continue
            if not is_there("presidio_analyzer"):
                problem = Problem(f"stage {step.name} needs the package presidio_analyzer, which is not installed")
                raise UsageError(problem, hint="pip install 'llmpipe[presidio]'")
            model = engine["model"]
            if model and not is_there(model) and not Path(model).is_dir():
                problem = Problem(f"stage {step.name} needs the spaCy model {model}, which is not installed")
                raise UsageError(problem, hint=f"python -m spacy download {model}")


def refuse_without_trackers(steps: Sequence[Step]) -> None:
    """Refuse to begin where a stage reports to a package that is missing.

    Raises:
        UsageError: the first such stage and all that it lacks.
    """
    for step in steps:
        asked = (step.record.settings.get("trainer") or {}).get("report_to", ())
        named = [asked] if isinstance(asked, str) else asked
        missing = [name for name in TRACKERS if name in named and not is_there(name)]
        if missing and step.action not in ("skip", "wait"):
            problem = f"stage {step.name} reports to {' and '.join(missing)}, which is not installed"
            raise UsageError(Problem(problem), hint=f"pip install {' '.join(missing)}")


def refuse_without_server(command: str = "serve") -> None:
    """Refuse to serve where what speaks HTTP is missing.

    Raises:
        UsageError: with what to install.
    """
    missing = [name for name in ("fastapi", "uvicorn") if not is_there(name)]
    if missing:
        problem = f"{command} needs the package {missing[0]}, which is not installed"
        raise UsageError(problem, hint="pip install 'llmpipe[serve]'")


def is_there(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False
