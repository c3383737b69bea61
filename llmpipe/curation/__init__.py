"""Curate: text in, better text out; a list of steps, each counted and explained.

A step is a module with two names. `Settings` (pydantic, `step: Literal["pii"]`) is what the recipe says under `steps:`.
`build(settings)` returns a function of one text, `str -> Verdict`: a pure one, so that texts can be spread over
processes and a run repeats. A step that has to see the whole corpus first also has `gather(settings)`, which returns a
function `str -> Counter[str]`; the sum of its counters over the corpus is the second argument of `build`.

A step that judges many texts at once, with something it is given, has `build_for_many(settings, given)` beside `build`;
it returns a function `list[str] -> list[Verdict]`.

A step that compares texts with each other has `keys(settings)` instead, which returns a pure function
`str -> list[bytes]`: a key for each unit of a text (the text itself, or its paragraphs). `Comparison(settings, folder)`
takes the keys of all texts in order and says which units repeat an earlier one; `build(settings)` then returns a
function of a text and the numbers of its units that do, `(str, tuple[int, ...]) -> Verdict`. What it keeps of a corpus
lies on disk.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A text on its way through the steps, and where it came from: `file:line`."""

    text: str
    where: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a step makes of one text.

    `texts` go on to the next step: none when it is dropped, itself when it is good, changed, or more than one where a
    step adds to it. `found` names why, one name for each finding (`email`, `too few words`); they are counted.
    """

    texts: tuple[str, ...]
    found: tuple[str, ...] = ()
