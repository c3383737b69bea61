"""Presidio as the engine of the step pii: for what has no form, such as names and places, and for its own patterns.

    - {step: pii, engine: {name: presidio, entities: [PERSON, LOCATION], model: en_core_web_lg}}

It takes `pip install 'llmpipe[presidio]'` and, for names, a spaCy model (`python -m spacy download en_core_web_lg`).
Each process loads both. Nothing is fetched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from llmpipe.curation.spans import Span, apart
from llmpipe.errors import DataError, did_you_mean
from llmpipe.settings import Strict

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine

BY_A_MODEL = ("PERSON", "LOCATION", "NRP", "ORGANIZATION")
"""Entities that presidio has no pattern for."""
WINDOW_CHARACTERS = 100_000
"""spaCy takes about 1 GB for so many at once, and refuses a million."""


class Presidio(Strict):
    """What presidio looks for, and by which model."""

    name: Literal["presidio"] = Field(description="which engine this is")
    entities: list[str] = Field(
        min_length=1, description="what to look for, by presidio's names: PERSON, LOCATION, US_SSN, PHONE_NUMBER, ..."
    )
    model: str | None = Field(
        None,
        description="spaCy's, for names and places: an installed package, such as en_core_web_lg, or a folder's whole "
        "path; without one there are presidio's patterns alone",
    )
    language: str = Field("en", description="of the texts, as two letters; most of presidio's patterns are for en")
    threshold: float = Field(0.4, ge=0, le=1, description="the score that presidio gives a find, from which it counts")

    @model_validator(mode="after")
    def _names_need_a_model(self) -> Self:
        if self.model is None and (needed := [name for name in self.entities if name in BY_A_MODEL]):
            told = f"presidio tells {needed[0]} by a model of spaCy: model: en_core_web_lg"
            raise PydanticCustomError("step", "{told}", {"told": told})
        return self


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Engine = Annotated[Presidio, BeforeValidator(_named)]


def finder(engine: Presidio) -> Callable[[str], list[Span]]:
    """Return what finds entities in a text, in order and without overlap, each named by its entity.

    Raises:
        DataError: presidio does not know an entity in this language.
    """
    analyzer = _analyzer(engine)
    known = sorted(analyzer.get_supported_entities(engine.language))
    for entity in engine.entities:
        if entity not in known:
            message = f"presidio finds no {entity} in the language {engine.language}{did_you_mean(entity, known)}"
            raise DataError(message, hint=f"entities: some of {', '.join(known)}")

    def find(text: str) -> list[Span]:
        found = [
            (-one.score, offset + one.start, offset + one.end, one.entity_type)
            for offset, window in windows(text)
            for one in analyzer.analyze(
                window, engine.language, entities=engine.entities, score_threshold=engine.threshold
            )
        ]
        spans: list[Span] = []
        for _, start, end, entity in sorted(found, key=lambda one: (one[0], one[1] - one[2], one)):  # the longer first
            if apart([(start, end)], [(span.start, span.end) for span in spans]):
                spans.append(Span(entity, start, end))
        return sorted(spans, key=lambda span: span.start)

    return find


def _analyzer(engine: Presidio) -> AnalyzerEngine:
    import tldextract.tldextract
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NoOpNlpEngine, SpacyNlpEngine

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)  # it warns of each label that nobody asked for
    # presidio 2.2.366 looks the domain of an e-mail address up by tldextract's own extractor, which fetches the list of
    # public suffixes and keeps it in the home directory; the one in its package is the same on every machine
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    kind = SpacyNlpEngine if engine.model else NoOpNlpEngine
    nlp = kind(models=[{"lang_code": engine.language, "model_name": engine.model or "none"}])
    return AnalyzerEngine(nlp_engine=nlp, supported_languages=[engine.language])


def windows(text: str) -> Iterator[tuple[int, str]]:
    """Cut a text at line ends, or else at spaces, into parts that spaCy can take; yields where each begins, too."""
    start = 0
    while start < len(text):
        end = start + WINDOW_CHARACTERS
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or text.rfind(" ", start, end) + 1 or end
        yield start, text[start:end]
        start = end
