"""rank: people rank what models answer; what they say is what `reward` and `dpo` learn from.

llmpipe rank runs/mine --prompts prompts.jsonl --models chat ppo --n 4
llmpipe rank runs/mine --page --annotator ann --annotator bob
llmpipe rank runs/mine --export pairs.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpipe import console
from llmpipe.errors import UsageError
from llmpipe.inspection import last_model
from llmpipe.ranking import given
from llmpipe.ranking.asking import Asking, Form
from llmpipe.ranking.export import OVERALL
from llmpipe.ranking.records import FEWEST, MOST
from llmpipe.ranking.sampling import Round, Sampler, missing
from llmpipe.ranking.store import Store
from llmpipe.talk.engine import Engine, Sampling


@dataclass(frozen=True)
class Wanted:
    """What a round is to be; without `prompts` the newest one goes on."""

    run: str
    prompts: str | None = None
    models: Sequence[str] = ()
    count: int = 4
    criteria: Sequence[str] = ()
    guidelines: Path | None = None
    gold: Path | None = None
    seed: int = 42
    how: Sampling = field(default_factory=Sampling)
    key_variable: str | None = None


def rank(store: Store, wanted: Wanted, annotator: str) -> None:
    """Rank at a terminal; lines through a pipe are read as if they were typed.

    Raises:
        LlmpipeError: there is no such round, model or file, or a model fails.
    """
    with sampled(store, wanted) as (form, sampler):
        rank_by = Asking(store, form, annotator)
        from llmpipe.ranking.terminal import rank_here

        rank_here(rank_by, sampler, _ask)


@contextmanager
def sampled(store: Store, wanted: Wanted) -> Iterator[tuple[Form, Sampler | None]]:
    """Begin a round or go on with one, and sample in the background what it lacks, until the block ends.

    Raises:
        LlmpipeError: as `rank`.
    """
    found, settings = _round(store, wanted)
    round_id = store.begin_round(found.key, settings)
    if wanted.gold is not None:
        for place, (asked, answers, known) in enumerate(given.gold(wanted.gold)):
            store.add_task("gold", asked, answers, round_id=round_id, place=place, gold=known)
    form = Form(round_id, settings["criteria"], settings["guidelines"], len(found.prompts), found.seed)
    with ExitStack() as stack:
        sampler = None
        if missing(store, round_id, found):
            sampler = Sampler(store, round_id, found, _engines(found.models, wanted.key_variable, stack))
            stack.callback(sampler.end)
            sampler.start()
        yield form, sampler


def _round(store: Store, wanted: Wanted) -> tuple[Round, dict[str, Any]]:
    """Return the round, and what of it is kept."""
    if wanted.prompts is None:
        if wanted.models:
            raise UsageError("what are the models to answer?", hint="--prompts FILE")
        newest = store.newest_round()
        if newest is None:
            raise UsageError("there is nothing to rank yet", hint=f"llmpipe rank {wanted.run} --prompts FILE")
        settings = newest[1]
        found = Round.of(settings)
    else:
        found = _new_round(wanted)
        settings = found.settings()
    if wanted.criteria or "criteria" not in settings or wanted.guidelines:
        criteria = list(dict.fromkeys(wanted.criteria or settings.get("criteria") or [OVERALL]))
        settings |= {"criteria": criteria, "guidelines": given.guidelines(criteria, wanted.guidelines)}
    return found, settings


def _new_round(wanted: Wanted) -> Round:
    if not FEWEST <= wanted.count <= MOST:
        raise UsageError(f"--n {wanted.count}: people compare {FEWEST} to {MOST} answers at once")
    models = [_model(wanted.run, name) for name in wanted.models or (wanted.run,)]
    if len(models) > wanted.count:
        raise UsageError(
            f"{len(models)} models give more than {wanted.count} answers", hint=f"--n {len(models)}, or fewer models"
        )
    if wanted.how.temperature == 0 and len(models) < wanted.count:
        raise UsageError("a model's answers are all the same at a temperature of 0", hint="--temperature 0.8")
    assert wanted.prompts is not None
    prompts = given.prompts(wanted.prompts)
    if not prompts:
        raise UsageError(f"{wanted.prompts} has no prompts")
    return Round(prompts, models, wanted.count, wanted.seed, wanted.how)


def _model(run: str, name: str) -> str:
    """Read a name without a colon or a slash as that of a stage of the run, and the run's as that of its last model."""
    if name == run:
        return last_model(run)
    if ":" in name or "/" in name:
        return name
    return f"{run}:{name}"


def _engines(models: Sequence[str], key_variable: str | None, stack: ExitStack) -> Mapping[str, Engine]:
    from llmpipe.talk.opening import ADDRESS, opened

    engines: dict[str, Engine] = {}
    for name in models:
        with console.err.status("loading"):
            key = key_variable if name.startswith(ADDRESS) else None
            engines[name] = stack.enter_context(opened(name, key_variable=key))
    return engines


def _ask(question: str) -> str:
    """Read a line; at a terminal it can be edited."""
    if sys.stdin.isatty():
        from prompt_toolkit import prompt

        return prompt(question)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
