"""Swaps: he for she and back, what `her` becomes, names, and that men and women are named as often."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llmpipe.curation import Verdict
from llmpipe.curation.bias import count
from llmpipe.curation.groups import MEN, WOMEN, default_groups, pairs
from llmpipe.curation.pronouns import swapped
from llmpipe.curation.swap import Settings, build


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He's late.", "She's late."),
        ("HE said MEN know him.", "SHE said WOMEN know her."),
        ("I saw her.", "I saw him."),
        ("I saw her and left.", "I saw him and left."),
        ("I told her slowly that it rained.", "I told him slowly that it rained."),
        ("Let her sing.", "Let him sing."),
        ("Her early work, her “big” plan", "His early work, his “big” plan"),
        ("I saw her own son-in-law.", "I saw his own daughter-in-law."),
        ("This is his. That was his, too.", "This is hers. That was hers, too."),
        ("A friend of hers", "A friend of his"),
        ("his 2nd wife’s aunt", "her 2nd husband’s uncle"),
        ("Mrs. Li and Mr. Li", "Mr. Li and Ms. Li"),
        ("The manager shed his sheep-dog.", "The manager shed her sheep-dog."),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert swapped(text, names=True) == expected


def test_names() -> None:
    text = "Then Mary met JOHN. Scarlett John saw LeBron Mary; mary"
    assert swapped(text, names=True) == "Then John met MARY. Scarlett John saw LeBron Mary; mary"
    assert swapped(text, names=False) == text


LISTED = [word for pair in pairs("words") for word in pair]
PRONOUNS = [*MEN.split(), *WOMEN.split()]


def test_every_word_is_listed_once_and_on_both_sides() -> None:
    words = LISTED + [name.lower() for pair in pairs("names") for name in pair]
    assert len(set(words)) == len(words)
    of_word = default_groups().of_word
    for man, woman in pairs("words"):
        assert (of_word[man], of_word[woman]) == (("gender/men",), ("gender/women",))


@given(st.sampled_from(LISTED), st.sampled_from([str.lower, str.upper, str.capitalize]))
def test_words_swap_back(word: str, written: type[str]) -> None:
    text = f"A {written(word)}, then."
    assert swapped(text, names=True) != text
    assert swapped(swapped(text, names=True), names=True) == text


TEXTS = st.lists(
    st.sampled_from([*LISTED, *PRONOUNS, "Mrs", "coat", "and", "slowly", "let", "Jane", ",", ". ", "\n"]), max_size=20
).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_men_and_women_change_places(text: str) -> None:
    before, after = count(text), count(swapped(text, names=False))
    assert before["gender/men"] == after["gender/women"]
    assert before["gender/women"] == after["gender/men"]


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=5))
def test_with_their_twins_they_are_named_as_often(texts: list[str]) -> None:
    step = build(Settings(share=1, add=True))
    counts = [count(other) for text in texts for other in step(text).texts]
    assert sum(each["gender/men"] for each in counts) == sum(each["gender/women"] for each in counts)


def test_the_step() -> None:
    assert build(Settings(share=1))("He sang.") == Verdict(("She sang.",), ("swapped",))
    assert build(Settings(share=1, add=True))("He sang.") == Verdict(("He sang.", "She sang."), ("swapped",))
    assert build(Settings(share=1, add=True))("It rained.") == Verdict(("It rained.",))
    assert build(Settings(share=1, names=False))("Mary sang.") == Verdict(("Mary sang.",))


def test_a_share_of_the_texts_is_swapped_and_always_the_same() -> None:
    texts = [f"He sang {number} songs." for number in range(1000)]
    step = build(Settings(share=0.3))
    verdicts = [step(text) for text in texts]
    assert sum(bool(verdict.found) for verdict in verdicts) == pytest.approx(300, abs=45)
    assert [build(Settings(share=0.3))(text) for text in texts] == verdicts
    assert all(build(Settings(share=0.6))(text).found for text, v in zip(texts, verdicts, strict=True) if v.found)


def test_a_share_of_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Settings(share=0)
