"""What a round is made of, read from files: prompts, gold questions with what is known of them, guidelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from llmpipe.artifact import StepRecord
from llmpipe.context import Context
from llmpipe.data.preferences import Preference
from llmpipe.data.sources import read_preferences, read_prompts
from llmpipe.errors import Problem, UsageError
from llmpipe.ranking.records import MOST, Answer, Asked
from llmpipe.settings import AnySource, BuiltinSource, PathSource

GUIDELINES = {
    "overall": "Which answer would you rather have got?",
    "helpfulness": "Does it do what was asked, fully and to the point?",
    "quality": "Is it right, clear and well written, whatever was asked?",
    "safety": "Does it keep from harm: to the person, to others, by what it says or helps to do?",
}
"""What people are told of a criterion where no other guidelines are given."""

Gold = tuple[Asked, tuple[Answer, ...], Mapping[str, Sequence[tuple[int, int]]]]


def prompts(source: str) -> list[Asked]:
    """Read prompts from a file in any format that has them, or those of storyworld.

    Raises:
        LlmpipeError: there is no such file, or it has no prompts; one that offers tools, whose answers are no texts.
    """
    found = [prompt for _, prompt in read_prompts([_source(source)], _context())]
    if with_tools := [n for n, one in enumerate(found, 1) if one.tools]:
        raise UsageError(
            Problem(f"prompt {with_tools[0]} offers tools; people rank answers that are texts", where=source),
            hint="leave such prompts out",
        )
    return [Asked([{"role": turn["role"], "content": turn["content"]} for turn in p.messages], p.text) for p in found]


def gold(source: Path) -> list[Gold]:
    """Read questions whose better answers are known, from a file of preferences; a row gives one question.

    Raises:
        LlmpipeError: there is no such file, or a row has no preference or more answers than people are asked to rank.
    """
    rows = read_preferences([_source(str(source))], _context())
    found = [_known([one for _, one in group]) for _, group in groupby(rows, key=lambda pair: pair[0].where)]
    if (most := max((len(answers) for _, answers, _ in found), default=0)) > MOST:
        raise UsageError(Problem(f"a row has {most} answers; people rank {MOST} at most", where=str(source)))
    return found


def guidelines(criteria: Sequence[str], file: Path | None) -> dict[str, str]:
    """Return what people are told of each criterion: the text of a file, else a sentence of ours.

    Raises:
        UsageError: the file cannot be read.
    """
    if file is None:
        return {name: GUIDELINES.get(name, f"Rank the answers by their {name} alone.") for name in criteria}
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as failure:
        raise UsageError(f"--guidelines {file} cannot be read: {failure}") from None
    return dict.fromkeys(criteria, text)


def _known(pairs: Sequence[Preference]) -> Gold:
    """Return a question of pairs: its answers, each once, and which is better than which by criterion."""
    first = pairs[0]
    texts = list(dict.fromkeys(side[-1]["content"] for one in pairs for side in (one.chosen, one.rejected)))
    known: dict[str, list[tuple[int, int]]] = {}
    for one in pairs:
        better, worse = (texts.index(side[-1]["content"]) for side in (one.chosen, one.rejected))
        known.setdefault(one.criterion or "", []).append((better, worse))
    asked = Asked(
        [{"role": turn["role"], "content": turn["content"]} for turn in first.prompt], first.text and first.text[0]
    )
    return asked, tuple(Answer(text, ()) for text in texts), known


def _source(text: str) -> AnySource:
    if text == "storyworld":
        return BuiltinSource.model_validate({"builtin": text})
    return PathSource(path=text)


def _context() -> Context:
    step = StepRecord(name="rank", kind="rank", stage_version=1, fingerprint="", seed=42, settings={}, inputs=[])
    return Context(run_dir=Path(), step=step, emit=lambda _: None)
