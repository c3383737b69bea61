"""pii: finds e-mail, phone, IP, IBAN, card and keys by their form, and what has a checksum by that too.

    >>> spans = find("Write to jo@example.org or call +44 20 7946 0958.")
    >>> [(span.kind, span.start, span.end) for span in spans]
    [('email', 9, 23), ('phone', 32, 48)]

Names and addresses of people have no form; they are not looked for, but by another engine (see `presidio`):

    - {step: pii, engine: {name: presidio, entities: [PERSON], model: en_core_web_lg}}
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmpipe.curation import Verdict, presidio
from llmpipe.curation.identifiers import cards, credentials, emails, ibans, ips
from llmpipe.curation.phones import phones
from llmpipe.curation.spans import KINDS, Bounds, Kind, Span
from llmpipe.settings import Strict

# In this order: a card is no phone number, and an address in front of a domain no IP.
FINDERS: dict[Kind, Callable[[str], Iterable[Bounds]]] = {
    "key": credentials,
    "email": emails,
    "iban": ibans,
    "card": cards,
    "ip": ips,
    "phone": phones,
}
A_SIGN = re.compile(r"[@\d]|-----BEGIN|[\[(]at[\])]")


class Settings(Strict):
    """What of people's data is found in a text, and what becomes of the text."""

    step: Literal["pii"] = "pii"
    action: Literal["report", "mask", "drop"] = Field(
        "mask", description="mask writes <email> and the like; drop leaves out the text; report only counts"
    )
    kinds: list[Kind] = Field(
        list(KINDS), min_length=1, description="which to look for: email, phone, ip, iban, card, key"
    )
    engine: presidio.Engine | None = Field(
        None,
        exclude_if=lambda engine: engine is None,
        description="{name: presidio, entities: [PERSON, ...], ...} in place of llmpipe's own finders and `kinds:`",
    )

    @model_validator(mode="after")
    def _one_engine(self) -> Self:
        if self.engine is not None and self.kinds != list(KINDS):
            told = "`kinds:` are llmpipe's own; what presidio looks for are the `entities:` of its engine"
            raise PydanticCustomError("step", "{told}", {"told": told})
        return self


def find(text: str, kinds: Iterable[Kind] = KINDS) -> list[Span]:
    """Return what a text holds of these kinds, in order; spans do not overlap.

    All kinds are looked for, whichever are wanted: the digits of a card are no phone number where cards are kept.
    """
    if not A_SIGN.search(text):
        return []
    wanted, spans = set(kinds), []
    for kind, finder in FINDERS.items():
        found = list(finder(text))
        for start, end in found:
            text = f"{text[:start]}<{'_' * (end - start - 2)}>{text[end:]}"
        spans += [Span(kind, start, end) for start, end in found if kind in wanted]
    return sorted(spans, key=lambda span: span.start)


def mask(text: str, kinds: Iterable[Kind] = KINDS) -> str:
    """Put `<email>`, `<phone>` and the like for what is found; in the result nothing is found."""
    kinds = tuple(kinds)
    while spans := find(text, kinds):  # again, because what stands beside a mask may be read in another way
        text = masked(text, spans)
    return text


def masked(text: str, spans: list[Span]) -> str:
    """Put the kind of each span in its place; they are in order and do not overlap."""
    for span in reversed(spans):
        text = f"{text[: span.start]}<{span.kind}>{text[span.end :]}"
    return text


def build(settings: Settings) -> Callable[[str], Verdict]:
    """Return the step; what it finds is named by its kind, or as presidio names it."""
    kinds = tuple(settings.kinds)
    look = presidio.finder(settings.engine) if settings.engine else partial(find, kinds=kinds)

    def step(text: str) -> Verdict:
        spans = look(text)
        found = tuple(span.kind for span in spans)
        if not found or settings.action == "report":
            return Verdict((text,), found)
        if settings.action == "drop":
            return Verdict((), found)
        return Verdict((masked(text, spans) if settings.engine else mask(text, kinds),), found)

    return step
