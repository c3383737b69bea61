"""Toxicity by a list of words: which count, how many make a text toxic, and what is said of it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from llmpipe.curation import Verdict
from llmpipe.curation.toxicity import Settings, build, packaged_words

WORDS = {"mild": ["drat"], "strong": ["blast", "blast it all"], "severe": ["zounds", "f*ck"]}


def step(text: str, **options) -> Verdict:
    return build(Settings.model_validate({"words": WORDS, **options}))(text)


def test_it_drops_at_the_first_word_and_says_which() -> None:
    assert step("Well, BLAST.") == Verdict((), ("blast",))
    assert step("What the f*ck!") == Verdict((), ("f*ck",))
    assert step("Blast it all, and blast it") == Verdict((), ("blast it all", "blast"))


def test_a_part_of_a_word_is_none() -> None:
    text = "A blastula, seen by Scunthorpe's zoundscape."
    assert step(text) == Verdict((text,))


@pytest.mark.parametrize(
    ("severity", "found"),
    [("mild", ("drat", "blast", "zounds")), ("strong", ("blast", "zounds")), ("severe", ("zounds",))],
)
def test_severity_is_where_words_begin_to_count(severity: str, found: tuple[str, ...]) -> None:
    assert step("drat blast zounds", severity=severity) == Verdict((), found)


def test_a_share_of_the_words_may_be_toxic() -> None:
    text = "zounds " + "good " * 9
    assert step(text, share=0.1) == Verdict((text,), ("zounds",))
    assert step(text, share=0.09) == Verdict((), ("zounds",))
    assert step("blast it all now", share=0.5).texts == ()  # a phrase is as many words as it has


def test_report_drops_nothing() -> None:
    assert step("zounds", action="report") == Verdict(("zounds",), ("zounds",))


def test_the_packages_words() -> None:
    words = packaged_words()
    listed = [word for degree in words.values() for word in degree]
    assert len(listed) == len(set(listed)) > 150
    assert all(word == word.lower() for word in listed)
    verdict = build(Settings())
    assert verdict(f"You {words['strong'][0]}.") == Verdict((), (words["strong"][0],))
    kept = f"You {words['mild'][0]}, the hell with his raincoat."
    assert verdict(kept) == Verdict((kept,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": {"severe": ["!!"]}}, "'!!' is not a word"),
        ({"words": {"bad": ["x"]}}, "Input should be 'mild', 'strong' or 'severe'"),
        ({"share": 1.0}, "Input should be less than 1"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings.model_validate(options)
