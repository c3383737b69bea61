"""Which jobs the steps of a recipe become, and which of datatrove's blocks are in each.

A job reads what an earlier one has written. Steps that look at one text follow each other in a job. One that compares
texts takes several jobs of its own: signatures, what is equal in them, and a filter, with which the next job begins.
Where datatrove has a step's rules, its blocks are given the recipe's thresholds; other steps are llmpipe's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llmpipe.curation import near_duplicates, quality
from llmpipe.curation.passes import is_compared


@dataclass(frozen=True)
class Code:
    """Python that a literal cannot say."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Block:
    """A call in the pipeline, and the number of the step that it is a part of."""

    name: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    step: int | None = None


@dataclass
class Job:
    """Blocks that a task runs one after the other; `tasks` is Python."""

    name: str
    blocks: list[Block]
    tasks: str = "TASKS"


SIZE = Block("Size")
"""Counts what comes in."""
SPACES, WORDS = Code("Spaces()"), Code("Words()")


def jobs(steps: list[Any], readers: list[Block], given: dict[int, Any]) -> list[Job]:
    """Return the jobs in order; the last one writes what is left.

    `given` says where what steps are given beside their settings lies, by their place in the list.
    """
    found = [Job("1-steps", [*readers, SIZE])]
    for number, step in enumerate(steps):
        if is_compared(step):
            before = found[-1].name
            found[-1].blocks.append(_writer(before))
            comparing = _exact if step.step == "exact_duplicates" else _near
            found += comparing(step, number, before, of=len(found) + 1)
        else:
            found[-1].blocks += _alone(step, number, given.get(number))
    found[-1].blocks.append(_writer(found[-1].name))
    return found


def _reader(job: str) -> Block:
    return Block("JsonlReader", (_work(job),))


def _writer(job: str) -> Block:
    return Block("JsonlWriter", (_work(job),), {"compression": None})


def _work(name: str) -> Code:
    return Code(f'work("{name}")')


def _exact(step: Any, number: int, before: str, *, of: int) -> list[Job]:
    del step
    signatures, repeats, after = f"{of}-signatures", f"{of + 1}-repeats", f"{of + 2}-steps"
    config = Code("ExactDedupConfig(spaced_once, hash_config=SHA1)")
    workers = {"finder_workers": Code("TASKS"), "config": config}
    find = Block("ExactFindDedups", (_work(signatures), _work(repeats)), {"config": config}, number)
    gone = Block("ExactDedupFilter", (_work(repeats),), {"config": config}, number)
    return [
        Job(signatures, [_reader(before), Block("ExactDedupSignature", (_work(signatures),), workers, number)]),
        Job(repeats, [find]),
        Job(after, [_reader(before), gone]),
    ]


def _near(step: Any, number: int, before: str, *, of: int) -> list[Job]:
    bands, rows = near_duplicates.bands_of(step.threshold)
    names = (f"{of}-signatures", f"{of + 1}-bands", f"{of + 2}-clusters")
    signatures, shared, clusters = map(_work, names)
    values = f"n_grams={step.words}, num_buckets={bands}, hashes_per_bucket={rows}"
    config = Code(f"MinhashConfig({values}, **AS_OURS)")
    sign = Block("MinhashDedupSignature", (signatures,), {"config": config, "language": WORDS}, number)
    return [
        Job(names[0], [_reader(before), sign]),
        Job(names[1], [Block("MinhashDedupBuckets", (signatures, shared), {"config": config}, number)], str(bands)),
        Job(names[2], [Block("MinhashDedupCluster", (shared, clusters), {"config": config}, number)], "1"),
        Job(f"{of + 3}-steps", [_reader(before), Block("MinhashDedupFilter", (clusters,), {}, number)]),
    ]


def _alone(step: Any, number: int, given: Any) -> Iterator[Block]:
    """Yield the blocks of a step that looks at one text."""
    if step.step == "quality":
        yield from _quality(step, number)
        return
    options = {key: value for key, value in step.model_dump(exclude_none=True).items() if key != "step"}
    yield Block("Step", (step.step,), options | ({"given": given} if given else {}), number)


def _most(share: float) -> float:
    """Return a greatest share as datatrove takes it: there, 0 leaves out the rule, and does not forbid all."""
    return share or 1e-9


def _quality(step: quality.Settings, number: int) -> Iterator[Block]:
    words = {"language": SPACES}
    if rules := step.gopher:
        options: dict[str, Any] = {
            "min_doc_words": max(1, rules.min_words),
            "max_doc_words": rules.max_words,
            "min_avg_word_length": rules.min_word_length,
            "max_avg_word_length": rules.max_word_length,
            "max_symbol_word_ratio": _most(rules.max_symbols),
            "max_bullet_lines_ratio": _most(rules.max_bullet_lines),
            "max_ellipsis_lines_ratio": _most(rules.max_ellipsis_lines),
            "max_non_alpha_words_ratio": rules.min_letter_words,
            "min_stop_words": rules.min_stop_words,
        }
        yield Block("GopherQualityFilter", (), options | words, number)
    if repeated := step.repetition:
        options = {
            "dup_line_frac": _most(repeated.lines),
            "dup_para_frac": _most(repeated.paragraphs),
            "dup_line_char_frac": _most(repeated.line_characters),
            "dup_para_char_frac": _most(repeated.paragraph_characters),
            "top_n_grams": tuple(enumerate(repeated.top, 2)),
            "dup_n_grams": tuple(enumerate(repeated.runs, 5)),
        }
        yield Block("GopherRepetitionFilter", (), options | words, number)
    if step.c4:
        yield Block("C4QualityFilter", (), _c4(step.c4) | words, number)
    if step.fineweb:
        yield Block("FineWebQualityFilter", (), _fineweb(step.fineweb) | words, number)


def _c4(rules: quality.C4) -> dict[str, Any]:
    return {
        "filter_no_terminal_punct": rules.end_punctuation,
        "min_num_sentences": max(1, rules.min_sentences),
        "min_words_per_line": rules.min_words_in_line,
        "max_word_length": -1,
        "filter_javascript": rules.notices,
        "filter_policy": rules.notices,
        "filter_curly_bracket": rules.braces,
    }


def _fineweb(rules: quality.FineWeb) -> dict[str, Any]:
    return {
        "line_punct_thr": rules.min_ended_lines,
        "stop_chars": (*quality.ENDS, *quality.ELLIPSES, ":", ";"),
        "short_line_thr": rules.max_short_lines,
        "short_line_length": quality.SHORT_LINE_CHARACTERS,
        "char_duplicates_ratio": rules.max_repeated_characters,
        "new_line_ratio": Code('float("inf")'),
    }
