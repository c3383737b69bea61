"""toxicity: drops texts with insults and slurs, by a list of words with three degrees of severity, or by a classifier.

    - {step: toxicity, severity: severe}
    - {step: toxicity, labels: [hate, offensive], threshold: 0.5}    # classes of the stage's `classifier:`

A list sees words, not what is meant: it drops a quotation, a dialect and a joke, and lets polite hatred pass
(docs/curate-people.md has figures). A classifier is what a stage of `kind: classify` has written.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from llmpipe.curation import Verdict
from llmpipe.errors import DataError, Problem, did_you_mean
from llmpipe.settings import Strict

Severity = Literal["mild", "strong", "severe"]
DEGREES: dict[Severity, int] = {"mild": 1, "strong": 2, "severe": 3}
TOKEN = re.compile(r"[\w@$*]+")  # a$$ and f*ck are words
Phrase = tuple[str, ...]
THRESHOLD = 0.5


def _are_words(words: dict[Severity, list[str]]) -> dict[Severity, list[str]]:
    for word in (word for listed in words.values() for word in listed):
        if not TOKEN.search(word):
            raise PydanticCustomError("step", "'{word}' is not a word", {"word": word})
    return words


class Settings(Strict):
    """Which words are toxic, and how many make a text so."""

    step: Literal["toxicity"] = "toxicity"
    action: Literal["report", "drop"] = Field("drop", description="leave out the text, or only count what is found")
    severity: Severity = Field("strong", description="the least severe words that count")
    share: float = Field(
        0.0, ge=0, lt=1, description="of a text's words; dropped when more of them are toxic, 0: at the first"
    )
    words: Annotated[dict[Severity, list[str]], Field(min_length=1), AfterValidator(_are_words)] | None = Field(
        None, description="words and phrases in place of the package's: {severe: [word, two words]}"
    )
    labels: list[str] | None = Field(
        None,
        min_length=1,
        exclude_if=lambda labels: labels is None,
        description="the stage's `classifier:` decides in place of words: its classes that are toxic",
    )
    threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        exclude_if=lambda threshold: threshold is None,
        description="with labels: the probability, of all of them together, from which a text is toxic; 0.5",
    )

    @model_validator(mode="after")
    def _one_engine(self) -> Self:
        fields = type(self).model_fields
        of_words = [key for key in ("severity", "share", "words") if getattr(self, key) != fields[key].default]
        if self.labels is None and self.threshold is not None:
            told = "`threshold:` is for the classifier; say which of its classes are toxic: labels: [...]"
            raise PydanticCustomError("step", "{told}", {"told": told})
        if self.labels is not None and of_words:
            told = f"with `labels:` the classifier decides, and `{of_words[0]}:` is for the list of words"
            raise PydanticCustomError("step", "{told}", {"told": told})
        return self


@cache
def packaged_words() -> dict[Severity, list[str]]:
    """Return the package's words by severity."""
    content = tomllib.loads(files("llmpipe.curation").joinpath("toxic_words.toml").read_text(encoding="utf-8"))
    return {severity: content[severity].split() for severity in DEGREES}


def by_first_word(words: Iterable[str]) -> dict[str, list[Phrase]]:
    """Return phrases by their first word, the longest first."""
    phrases: dict[str, list[Phrase]] = {}
    for word in words:
        tokens = tuple(TOKEN.findall(word.lower()))
        phrases.setdefault(tokens[0], []).append(tokens)
    for listed in phrases.values():
        listed.sort(key=len, reverse=True)
    return phrases


def toxic(tokens: Sequence[str], phrases: dict[str, list[Phrase]]) -> Iterator[tuple[int, Phrase]]:
    """Yield the phrases that tokens hold, each with the place of its first token; `phrases` are `by_first_word`."""
    for place, token in enumerate(tokens):
        for phrase in phrases.get(token, ()):
            if tuple(tokens[place : place + len(phrase)]) == phrase:
                yield place, phrase
                break


def build(settings: Settings) -> Callable[[str], Verdict]:
    """Return the step; it finds the words, as they are listed."""
    lists = (settings.words or packaged_words()).items()
    least = DEGREES[settings.severity]
    phrases = by_first_word(word for severity, words in lists if DEGREES[severity] >= least for word in words)

    def step(text: str) -> Verdict:
        tokens = TOKEN.findall(text.lower())
        found = [phrase for _, phrase in toxic(tokens, phrases)]
        if settings.action == "drop" and sum(map(len, found)) > settings.share * len(tokens):
            return Verdict((), tuple(map(" ".join, found)))
        return Verdict((text,), tuple(map(" ".join, found)))

    return step


def build_for_many(settings: Settings, folder: str) -> Callable[[list[str]], list[Verdict]]:
    """Return the step with the classifier of a folder, for many texts at once; it finds the most probable label."""
    from llmpipe.evaluation.classifier import Classifier

    assert settings.labels is not None
    classifier, labels, threshold = Classifier(folder), settings.labels, settings.threshold or THRESHOLD

    def verdict(text: str, probabilities: dict[str, float]) -> Verdict:
        if sum(probabilities[label] for label in labels) < threshold:
            return Verdict((text,))
        found = (max(labels, key=lambda label: probabilities[label]),)
        return Verdict(() if settings.action == "drop" else (text,), found)

    def step(texts: list[str]) -> list[Verdict]:
        return list(map(verdict, texts, classifier.worst(texts, labels)))

    return step


def refuse_unknown(labels: list[str], folder: str) -> None:
    """Refuse labels that a classifier does not have; torch is not imported for that.

    Raises:
        DataError: the folder holds no classifier, or one with other classes.
    """
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    classes = list(config.get("id2label", {}).values())
    if not classes or not any("SequenceClassification" in name for name in config.get("architectures") or ()):
        hint = "a stage of `kind: classify` makes one: classifier: STAGE"
        raise DataError(Problem("is no folder of a classifier", where=folder), hint=hint)
    if unknown := [label for label in labels if label not in classes]:
        near = did_you_mean(unknown[0], classes)
        raise DataError(
            Problem(f"this classifier has no class '{unknown[0]}'{near}", where=folder),
            hint=f"its classes are {', '.join(classes)}",
        )
