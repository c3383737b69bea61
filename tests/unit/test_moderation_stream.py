"""An answer that is moderated while it comes: whatever its parts, the same is shown, and nothing that may not be."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpipe.moderation import Find
from llmpipe.moderation.log import Log
from llmpipe.moderation.moderator import Moderator
from llmpipe.moderation.policy import Policy
from llmpipe.moderation.stream import LONGEST_SENTENCE, LOOK_CHARS, Blocked, Stream
from llmpipe.moderation.words import Personal, Words

LISTS = {"rude": ["blast"], "phrase": ["kill the lights"], "dropped": ["drat", "drat it all"]}
KINDS = ("email", "phone", "card", "iban", "key", "ip")
WORDS = {
    "words": {"layer": "words", "category": ["rude", "phrase"], "output": "block"},
    "dropped": {"layer": "words", "category": "dropped", "output": "redact"},
}
DATA = {"data": {"layer": "personal", "category": list(KINDS), "output": "redact"}}
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMw\n" * 6
KEY += "-----END OPENSSH PRIVATE KEY-----"
PIECES = [
    "blast", "Blast!", "blasted", "kill", "the", "lights", "drat", "it", "all", "drat it all", "kill  the\n", "lights.",
    "jo@example.org", "jo [at] example", "[dot] org", "call", "+44 20 7946", "0958", "555 123 4567", "office", "order",
    "4111 1111", "1111 1111", "DE89 3704 0044 0532 0130 00", "192.168.7.9", "sk-proj-Ab3dEf6hIj9kLm2nOp5q", "token:",
    "Ab3dEf6hIj9kLm2nOp5qRs8t", KEY, "a story of a duck", "in 1999,", "(see", "below)", "end.", "", "\n", "世界", "🦆",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=12).flatmap(
    lambda parts: st.lists(st.sampled_from([" ", "\n", ", "]), min_size=len(parts), max_size=len(parts)).map(
        lambda gaps: "".join(itertools.chain.from_iterable(zip(parts, gaps, strict=True)))
    )
)


class Sentences:
    """Finds the word `bad` in what it is given, as a classifier would: all of it."""

    def __init__(self, category: str) -> None:
        self.category = category
        self.seen: list[str] = []

    def find(self, text: str) -> list[Find]:
        self.seen.append(text)
        return [Find(self.category, float("bad" in text), 0, len(text))]


def moderator(folder: Path, rules: dict[str, dict[str, object]], **more: Sentences) -> Moderator:
    keys: dict[str, object] = {"refusal": "{reference}", "rules": rules, "words": LISTS}
    policy = Policy.model_validate(keys)
    plain = {"words": Words(LISTS), "personal": Personal(KINDS)} | more
    layers = {name: plain[name] for name in plain if policy.of_layer(name)}
    return Moderator(policy, layers, Log(folder / "log.jsonl"))


def shown(moderator: Moderator, parts: list[str]) -> tuple[list[str], str | None]:
    """Return what is shown, part by part, and the rule that ended it."""
    stream, told = Stream(moderator), []
    try:
        for part in parts:
            told += stream.add(part)
        told += stream.end()
    except Blocked as blocked:
        return told, blocked.decision.rule
    return told, None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    def at(*rules: dict[str, dict[str, object]]) -> Moderator:
        return moderator(tmp_path_factory.mktemp("log"), dict(itertools.chain(*(one.items() for one in rules))))

    return SimpleNamespace(words=at(WORDS), data=at(DATA), both=at(WORDS, DATA))


@settings(max_examples=60, deadline=None)
@given(text=texts, cuts=st.lists(st.integers(0, 400), max_size=30))
def test_what_is_shown_does_not_depend_on_the_parts(made: SimpleNamespace, text: str, cuts: list[int]) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[start:end] for start, end in itertools.pairwise(places)]
    whole, by_rule = shown(made.both, [text])
    for cut in (parts, list(text)):
        told, rule = shown(made.both, cut)
        assert ("".join(told), rule) == ("".join(whole), by_rule)


@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_nothing_is_shown_that_may_not_be(made: SimpleNamespace, text: str) -> None:
    """What is shown has no word of the lists, and is what judging the whole text leaves."""
    told, _ = shown(made.words, list(text))
    assert not made.words.layers["words"].find("".join(told))
    for own in (made.words, made.data):
        told, rule = shown(own, list(text))
        verdict = own.judge(text, "output")
        assert (rule is not None) == (verdict.blocked is not None)
        if rule is None:
            assert "".join(told) == verdict.text


def test_a_word_waits_for_its_end_and_a_phrase_for_its_last_word(made: SimpleNamespace) -> None:
    stream = Stream(made.words)
    told = ["".join(stream.add(part)) for part in ["We ki", "ll the", " lamps", " and go", " to bed. "]]
    assert told == ["", "", "We ", "kill the ", "lamps and go "]
    assert "".join(stream.end()) == "to bed. "


def test_a_text_without_signs_is_a_word_behind(made: SimpleNamespace) -> None:
    stream = Stream(made.data)
    told = ["".join(stream.add(part)) for part in ["One ", "two ", "three "]]
    assert told == ["", "One ", "two "]
    assert "".join(stream.add("at 5 ")) == "three "
    assert "".join(stream.add("4 3 2 1 ")) == ""  # a number may begin with them
    assert "".join(stream.add("x " * LOOK_CHARS)) != ""


def test_what_comes_before_a_block_is_shown_and_what_comes_after_is_not(made: SimpleNamespace) -> None:
    told, rule = shown(made.words, ["One two three four. ", "A blast", " it is."])
    assert ("".join(told), rule) == ("One two three four. A ", "words")
    assert shown(made.words, ["blast"]) == ([], "words")


def test_a_key_of_many_lines_is_held_back_as_a_whole(made: SimpleNamespace) -> None:
    told, _ = shown(made.data, list(f"Here it is:\n{KEY}\nKeep it safe."))
    assert "".join(told) == "Here it is:\n[removed]\nKeep it safe."


def test_a_classifier_looks_at_sentences_and_a_guard_at_the_whole(tmp_path: Path) -> None:
    rules: dict[str, dict[str, object]] = {"hate": {"layer": "classifier", "category": "hate", "output": "redact"}}
    layer = Sentences("hate")
    own = moderator(tmp_path, rules, classifier=layer)
    told, _ = shown(own, list("Fine. All bad here!  Then fine\nagain"))
    assert "".join(told) == "Fine. [removed]  Then fine\nagain"
    assert layer.seen == ["Fine.", "All bad here!", "Then fine", "again"]
    rules = {"guarded": {"layer": "guard", "category": "unsafe", "output": "block"}}
    guard = Sentences("unsafe")
    own = moderator(tmp_path, rules, guard=guard)
    assert shown(own, ["Fine. ", "All bad."]) == ([], "guarded")
    assert shown(own, ["Fine. ", "Good."])[0] == ["Fine. Good."]
    assert guard.seen == ["Fine. All bad.", "Fine. Good."]


@settings(max_examples=30, deadline=None)
@given(text=st.text(alphabet="ab .!\n", max_size=3 * LONGEST_SENTENCE), size=st.integers(1, 50))
def test_sentences_are_the_same_whatever_the_parts(
    tmp_path_factory: pytest.TempPathFactory, text: str, size: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    rules: dict[str, dict[str, object]] = {"hate": {"layer": "classifier", "category": "hate", "output": "block"}}
    one, other = Sentences("hate"), Sentences("hate")
    whole, _ = shown(moderator(folder, rules, classifier=one), [text])
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    told, _ = shown(moderator(folder, rules, classifier=other), parts)
    assert "".join(told) == "".join(whole) == text
    assert one.seen == other.seen
    assert max(map(len, one.seen), default=0) <= LONGEST_SENTENCE


def test_layers_that_change_nothing_hold_nothing_back(tmp_path: Path) -> None:
    rules: dict[str, dict[str, object]] = {
        "words": {"layer": "words", "category": "rude", "output": "log"},
        "hate": {"layer": "classifier", "category": "hate", "output": "warn"},
    }
    own = moderator(tmp_path, rules, classifier=Sentences("hate"))
    stream = Stream(own)
    assert [*stream.add("A bla"), *stream.add("st, so bad"), *stream.end()] == ["A bla", "st, so bad"]
    assert [one.rule for one in stream.decisions] == ["words", "hate"]
