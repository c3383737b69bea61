"""Benchmark tasks on files, without lm-eval and without a network: the same requests, and the same figures, as its own.

Figures are `acc` (the likeliest answer is the right one; for how a text goes on: each token of it is the likeliest),
`acc_norm` (the same per byte of the choice), `exact_match`, and perplexities. A share comes with the standard error of
its mean and with its 95 % interval.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, stdev
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.context import Context
from llmpipe.data import Row
from llmpipe.data.benchmarks import BETWEEN_EXAMPLES, Asked, number_in, table_of
from llmpipe.data.sources import read_asked, read_documents
from llmpipe.errors import DataError, Problem, StageError
from llmpipe.evaluation.generate import answers
from llmpipe.evaluation.likelihood import Likelihood, Pair, encoded, log_likelihoods, prefix_token, rolling
from llmpipe.evaluation.pairs import wilson
from llmpipe.tasks import AnyTask, ChoicesTask, ContinuationTask, ExactMatchTask, LmEvalTask, Prompted, TextTask
from llmpipe.training.models import CALLED, kind_of

LocalTask = ChoicesTask | ContinuationTask | ExactMatchTask | TextTask


@dataclass(frozen=True)
class Subject:
    """A model that is measured, what it sees at once in tokens, and whether texts begin with the begin token."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    window: int
    add_bos: bool


@dataclass(frozen=True)
class Outcome:
    """What a task came to: its figures, and a line for each row."""

    figures: dict[str, Any]
    rows: list[dict[str, Any]]

    def shares(self) -> dict[str, list[bool]]:
        """Return whether each row was right, by TASK.FIGURE."""
        found: dict[str, list[bool]] = {}
        for row in self.rows:
            for key, value in row.items():
                if isinstance(value, bool):
                    found.setdefault(f"{row['task']}.{key}", []).append(value)
        return found


def examined(tasks: Sequence[AnyTask], subject: Subject, ctx: Context) -> Outcome:
    """Put a model through tasks one by one; what each row came to is told with the names of model and task.

    Raises:
        DataError: rows that cannot be asked, each with its place.
        UsageError: lm-eval has no such task, or it runs code.
        StageError: the model does not guess the next token, or a task of lm-eval cannot be loaded.
    """
    if (kind := kind_of(subject.model.config, ())) != "causal-lm":
        message = f"tasks are for models that guess the next token, and {subject.name} is {CALLED[kind]}"
        raise StageError(message, hint="put it into an eval stage without `tasks:`")
    figures: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for task in tasks:
        ctx.progress(doing=f"asking {subject.name} {task.title}")
        if isinstance(task, LmEvalTask):
            from llmpipe.evaluation import harness

            found = Outcome(harness.measure(task, subject), [])
        else:
            found = measure(task, subject, ctx)
        figures |= {f"{task.title}.{key}": value for key, value in found.figures.items()}
        rows += [{"model": subject.name, "task": task.title, **row} for row in found.rows]
    return Outcome(figures, rows)


def measure(task: LocalTask, subject: Subject, ctx: Context) -> Outcome:
    """Put a model through a task.

    Raises:
        DataError: rows that cannot be asked, each with its place.
    """
    match task:
        case TextTask():
            return _text(task, subject, ctx)
        case ChoicesTask():
            return _choices(_asked(task, ctx), subject)
        case ContinuationTask():
            return _continuation(_asked(task, ctx), subject)
        case ExactMatchTask():
            return _exact_match(task, _asked(task, ctx), subject, ctx)


def _asked(task: Prompted, ctx: Context) -> list[tuple[Row, Asked]]:
    """Read the rows of a task, with its examples before each prompt."""
    table = table_of(task)
    rows = list(islice(read_asked(getattr(task, task.kind), ctx, table), task.limit))
    if task.examples is None:
        return rows
    shown = [one for _, one in islice(read_asked(task.examples, ctx, table), task.shots)]
    if len(shown) < task.shots:
        raise DataError(f"{task.title}: there are {len(shown)} examples for {task.shots} shots")
    before = "".join(one.prompt + one.right + BETWEEN_EXAMPLES for one in shown)
    return [(row, Asked(before + one.prompt, one.answers, one.choices, one.gold)) for row, one in rows]


def _choices(rows: Sequence[tuple[Row, Asked]], subject: Subject) -> Outcome:
    found = _likelihoods([(row, one.prompt, answer) for row, one in rows for answer in one.answers], subject)
    told, each = [], iter(found)
    for row, one in rows:
        nats = [likelihood.nats for likelihood in islice(each, len(one.answers))]
        per_byte = [value / len(choice.encode("utf-8")) for value, choice in zip(nats, one.choices, strict=True)]
        right = {"acc": _first_best(nats) == one.gold, "acc_norm": _first_best(per_byte) == one.gold}
        told.append({"where": row.where, "log_likelihoods": nats, "gold": one.gold, **right})
    return Outcome(_share("acc", told) | _share("acc_norm", told) | {"rows": len(told)}, told)


def _continuation(rows: Sequence[tuple[Row, Asked]], subject: Subject) -> Outcome:
    found = _likelihoods([(row, one.prompt, one.right) for row, one in rows], subject)
    told = [
        {"where": row.where, "log_likelihood": likelihood.nats, "acc": likelihood.is_greedy}
        for (row, _), likelihood in zip(rows, found, strict=True)
    ]
    nats = [likelihood.nats for likelihood in found]
    # of what is to be said as a whole, not of a token of it: as lm-eval has it for LAMBADA
    perplexity = math.exp(min(-fmean(nats), 700.0))
    spread = {"perplexity_stderr": perplexity * _stderr(nats)} if len(nats) > 1 else {}
    return Outcome(_share("acc", told) | {"perplexity": perplexity, **spread, "rows": len(told)}, told)


def _exact_match(task: ExactMatchTask, rows: Sequence[tuple[Row, Asked]], subject: Subject, ctx: Context) -> Outcome:
    for row, one in rows:
        if task.extract == "number" and number_in(one.right) is None:
            raise DataError(Problem("there is no number in the answer", row.where), hint="extract: text")
    prompts = [one.prompt for _, one in rows]
    chat = task.chat and subject.tokenizer.chat_template is not None
    order = sorted(range(len(rows)), key=lambda place: len(prompts[place]))
    given = [""] * len(rows)
    said = answers(
        subject.model,
        subject.tokenizer,
        [prompts[place] for place in order],
        chat=chat,
        max_new_tokens=task.max_new_tokens,
        temperature=0.0,
        seed=ctx.seed,
        batch=16,
        until=task.until,
    )
    for place, text in zip(order, said, strict=True):
        given[place] = text
    told = [
        {"where": row.where, "answer": text, "exact_match": _same(text, one.right, task.extract)}
        for (row, one), text in zip(rows, given, strict=True)
    ]
    return Outcome(_share("exact_match", told) | {"rows": len(told)}, told)


def _same(given: str, right: str, extract: str) -> bool:
    if extract == "number":
        return number_in(given) == number_in(right)
    return given.strip() == right.strip()


def _text(task: TextTask, subject: Subject, ctx: Context) -> Outcome:
    rows = list(islice(read_documents([task.text], ctx, part="validation"), task.limit))
    prefix = prefix_token(subject.tokenizer) if subject.add_bos else None
    pairs: list[list[Pair]] = [
        list(rolling(_plain(subject.tokenizer, text), prefix=prefix, window=subject.window)) for _, text in rows
    ]
    found = iter(log_likelihoods(subject.model, [pair for cut in pairs for pair in cut], window=subject.window))
    told = []
    for (row, text), cut in zip(rows, pairs, strict=True):
        nats = sum(likelihood.nats for likelihood in islice(found, len(cut)))
        sizes = {"words": len(re.split(r"\s+", text)), "bytes": len(text.encode("utf-8"))}
        told.append({"where": row.where, "log_likelihood": nats, "tokens": sum(len(one[1]) for one in cut), **sizes})
    nats, tokens, words, size = (
        sum(row[key] for row in told) for key in ("log_likelihood", "tokens", "words", "bytes")
    )
    if not tokens:
        raise DataError(f"{task.title}: the text is too short: no token in it follows another")
    figures = {
        "perplexity": math.exp(min(-nats / tokens, 700.0)),
        "word_perplexity": math.exp(min(-nats / words, 700.0)),
        "byte_perplexity": math.exp(-nats / size),
        "bits_per_byte": -nats / size / math.log(2),
    }
    return Outcome(figures | {"tokens": tokens}, told)


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"])


def _likelihoods(requests: Sequence[tuple[Row, str, str]], subject: Subject) -> list[Likelihood]:
    """Score what follows each prompt; what cannot be scored is named by its row.

    Raises:
        DataError: an answer adds no token to its prompt, or more than the model sees.
    """
    pairs = [encoded(subject.tokenizer, prompt, answer) for _, prompt, answer in requests]
    problems = []
    for (row, _, answer), (_, after) in zip(requests, pairs, strict=True):
        if not after:
            problems.append(Problem(f"the answer {answer!r} adds no token to the prompt", row.where))
        elif len(after) > subject.window:
            message = f"an answer has {len(after)} tokens, but the model sees {subject.window} at most"
            problems.append(Problem(message, row.where))
    if problems:
        raise DataError(problems)
    return log_likelihoods(subject.model, pairs, window=subject.window)


def _first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _share(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many rows are right, the standard error of that mean, and its 95 % interval (Wilson's)."""
    right = [float(row[name]) for row in rows]
    spread = {f"{name}_stderr": _stderr(right)} if len(right) > 1 else {}
    return {name: fmean(right), **spread, f"{name}_interval": list(wilson(sum(right), len(right)))}


def _stderr(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values))
