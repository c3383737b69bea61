"""Tasks of lm-eval (EleutherAI), run by lm-eval itself on a model that is loaded already.

Only the tasks that its package brings are run: a configuration of one's own may name Python functions. A task that
would run code which the model wrote is refused; nothing here confirms one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from llmpipe.errors import StageError, UsageError, did_you_mean
from llmpipe.evaluation.tasks import Subject
from llmpipe.tasks import LmEvalTask

BATCH = 8
BOOTSTRAPS = 1_000
"""Resamples for the standard error of what has none in closed form; acc and exact_match have one."""

HINT = "its data come from the hub, which takes the network once; rows of a file do not: {choices: {path: FILE}}"


@cache
def manager() -> TaskManager:
    """Return lm-eval's list of tasks; it reads thousands of files, once."""
    return TaskManager()


def measure(task: LmEvalTask, subject: Subject) -> dict[str, Any]:
    """Put a model through a task of lm-eval.

    Raises:
        UsageError: lm-eval has no such task, or it runs code that the model wrote.
        StageError: it cannot be loaded; most have their data on the hub.
    """
    name = task.lm_eval
    refuse(name)
    with _quietly():
        try:
            loaded = manager().load([name])
        except Exception as error:  # a dozen classes of three libraries: offline, gated, moved, a package missing
            message = f"{name} cannot be loaded: {type(error).__name__}: {error}".splitlines()[0]
            raise StageError(message, hint=HINT) from error
        groups = loaded.get("groups", {})
        chosen = [groups[name]] if name in groups else list(loaded["tasks"].values())
        return figures(evaluated(chosen, subject, shots=task.shots, limit=task.limit), name)


def evaluated(
    tasks: list[Any], subject: Subject, *, shots: int | None, limit: int | None, log_samples: bool = False
) -> Mapping[str, Any]:
    """Have lm-eval run tasks, with its own seeds, so that its results are those of its command."""
    model = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=BATCH, max_length=subject.window)
    results: Mapping[str, Any] | None = simple_evaluate(
        model,
        tasks=tasks,
        num_fewshot=shots,
        limit=limit,
        bootstrap_iters=BOOTSTRAPS,
        log_samples=log_samples,
        task_manager=manager(),
        confirm_run_unsafe_code=False,
    )
    assert results is not None  # it is None for the ranks above 0 of several processes
    return results


def refuse(name: str) -> None:
    """Refuse a task that lm-eval does not have, and one that runs code which the model wrote.

    lm-eval asks for a confirmation itself, but only after it has loaded the task, which imports the task's own code.

    Raises:
        UsageError: it is one of these.
    """
    known = manager().task_index
    if name not in known:
        hint = "lm-eval ls tasks prints all of them"
        raise UsageError(f"lm-eval has no task '{name}'{did_you_mean(name, manager().all_tasks)}", hint=hint)
    if unsafe := next(unsafe_in(name, known), None):
        message = f"{unsafe} runs code that the model wrote, which llmpipe never does"
        raise UsageError(message, hint="run it with lm-eval itself, in a sandbox")


def unsafe_in(name: str, known: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tasks that a name stands for, a task, a group or a tag, and that lm-eval marks as unsafe."""
    entry = known.get(name)
    if entry is None:
        return
    configuration = entry.cfg or {}
    if configuration.get("unsafe_code"):
        yield name
    members = (configuration.get("task") or []) if "group" in configuration else []
    for member in sorted(entry.tags) if entry.cfg is None else [members] if isinstance(members, str) else members:
        below = member if isinstance(member, str) else member.get("task", member.get("group", ""))
        if isinstance(member, dict) and member.get("unsafe_code"):
            yield str(below)
        if isinstance(below, str) and below != name:
            yield from unsafe_in(below, known)


def figures(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return lm-eval's results under our names: `acc,none` is acc, `exact_match,strict-match` exact_match_strict_match.

    A group that has figures of its own is known by those, any other by its tasks.
    """
    entries = results["results"]
    own = _named(entries.get(name, {}))
    rows = sum(counts["effective"] for counts in results.get("n-samples", {}).values())
    others = {f"{entry}.{key}": value for entry, found in entries.items() for key, value in _named(found).items()}
    return (own or others) | {"rows": rows}


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    named = {}
    for key, value in found.items():
        metric, comma, way = key.partition(",")
        if comma and isinstance(value, int | float):  # a standard error that it does not know is the text N/A
            stem, is_error = metric.removesuffix("_stderr"), metric.endswith("_stderr")
            with_way = stem if way == "none" else f"{stem}_{way.replace('-', '_')}"
            named[f"{with_way}_stderr" if is_error else with_way] = value
    return named


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what lm-eval prints off stdout, and its bootstrap from starting a process for each core."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        del os.environ["DISABLE_MULTIPROC"]
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before
