"""Presidio as the engine of pii: how it is asked and what is made of its answers; the package itself is not needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from llmpipe import packages
from llmpipe.curation import Verdict, presidio
from llmpipe.curation.pii import Settings, build
from llmpipe.errors import DataError, UsageError

NAMES = {"name": "presidio", "entities": ["PERSON", "LOCATION"], "model": "some_model"}
SCORES = {
    "Jo Li": ("PERSON", 0.85),
    "Li": ("LOCATION", 0.85),
    "Jo Li of Rome": ("LOCATION", 0.4),
    "Rome": ("LOCATION", 1),
}


class Analyzer:
    """Finds what is in SCORES, wherever it stands."""

    asked: dict[str, Any]

    def get_supported_entities(self, language: str) -> list[str]:
        return ["PERSON", "LOCATION", "URL"]

    def analyze(self, text: str, language: str, **options: Any) -> list[Any]:
        self.asked = {"language": language, **options}
        return [
            SimpleNamespace(entity_type=entity, score=score, start=start, end=start + len(name))
            for name, (entity, score) in SCORES.items()
            for start in range(len(text))
            if text.startswith(name, start)
        ]


@pytest.fixture
def analyzer(monkeypatch: pytest.MonkeyPatch) -> Analyzer:
    made = Analyzer()
    monkeypatch.setattr(presidio, "_analyzer", lambda engine: made)
    return made


def test_the_surest_find_stays_then_the_longest(analyzer: Analyzer) -> None:
    text = "Write to Jo Li of Rome, or to Li."
    settings = Settings.model_validate({"engine": {**NAMES, "threshold": 0.3}})
    found = ("PERSON", "LOCATION", "LOCATION")
    assert build(settings)(text) == Verdict(("Write to <PERSON> of <LOCATION>, or to <LOCATION>.",), found)
    assert analyzer.asked == {"language": "en", "entities": ["PERSON", "LOCATION"], "score_threshold": 0.3}
    assert build(settings.model_copy(update={"action": "report"}))(text) == Verdict((text,), found)
    assert build(settings.model_copy(update={"action": "drop"}))(text) == Verdict((), found)
    assert build(settings)("jo@example.org is not asked for.").texts == ("jo@example.org is not asked for.",)


def test_finds_keep_their_place_in_a_text_of_several_windows(
    analyzer: Analyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presidio, "WINDOW_CHARACTERS", 12)
    text = "one two\nJo Li and no more\nRome\n" + "x" * 30 + " Rome"
    parts = list(presidio.windows(text))
    assert "".join(part for _, part in parts) == text
    assert all(text.startswith(part, start) and 0 < len(part) <= 12 for start, part in parts)
    assert [part for _, part in parts][:4] == ["one two\n", "Jo Li and ", "no more\n", "Rome\n"]
    settings = Settings.model_validate({"engine": NAMES})
    assert build(settings)(text).texts[0] == text.replace("Jo Li", "<PERSON>").replace("Rome", "<LOCATION>")


def test_an_entity_that_presidio_does_not_know_is_refused(analyzer: Analyzer) -> None:
    settings = Settings.model_validate({"engine": {"name": "presidio", "entities": ["URLS"], "language": "de"}})
    with pytest.raises(DataError) as failed:
        build(settings)
    assert str(failed.value) == "presidio finds no URLS in the language de, did you mean URL?"
    assert failed.value.hint == "entities: some of LOCATION, PERSON, URL"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"engine": {**NAMES, "model": None}}, "presidio tells PERSON by a model of spaCy: model: en_core_web_lg"),
        ({"engine": NAMES, "kinds": ["email"]}, "`kinds:` are llmpipe's own; what presidio looks for are the"),
        ({"engine": "presidio"}, "engine.entities\n  Field required"),
        ({"engine": {**NAMES, "entities": []}}, "at least 1 item"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as failed:
        Settings.model_validate(asked)
    assert told in str(failed.value)


def test_recipes_without_it_keep_their_fingerprints() -> None:
    assert Settings().model_dump(mode="json").keys() == {"step", "action", "kinds"}


def test_what_is_missing_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(action: str = "run", **engine: Any) -> Any:
        steps = [{"step": "repair"}, {"step": "pii", "engine": {**NAMES, **engine}}]
        return SimpleNamespace(
            name="corpus", action=action, record=SimpleNamespace(kind="curate", settings={"steps": steps})
        )

    monkeypatch.setattr(packages, "is_there", lambda module: False)
    packages.refuse_without_presidio([step("skip")])
    with pytest.raises(UsageError) as failed:
        packages.refuse_without_presidio([step()])
    assert str(failed.value) == "stage corpus needs the package presidio_analyzer, which is not installed"
    assert failed.value.hint == "pip install 'llmpipe[presidio]'"
    monkeypatch.setattr(packages, "is_there", lambda module: module == "presidio_analyzer")
    packages.refuse_without_presidio([step(model=None), step(model="/")])
    with pytest.raises(UsageError) as failed:
        packages.refuse_without_presidio([step()])
    assert str(failed.value) == "stage corpus needs the spaCy model some_model, which is not installed"
    assert failed.value.hint == "python -m spacy download some_model"
