"""Reweight: mentions come to the shares that were asked for, by repeating or thinning, the same way each time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from llmpipe.curation.groups import default_groups
from llmpipe.curation.reweight import COPIES_MAX, Settings, build, copies_by_group, gather

# three times as many texts about men, and some of each name the others too
TEXTS = [f"He went with {'her' if number % 5 == 0 else 'him'} and his dog {number}." for number in range(600)]
TEXTS += [f"She told {'him' if number % 4 == 0 else 'her'} and her cat {number}." for number in range(200)]
TEXTS += [f"It rained on day {number}." for number in range(100)]


def through(texts: list[str], **options: Any) -> list[str]:
    step = Settings.model_validate(options)
    counts: Counter[str] = Counter()
    for gathered in map(gather(step), texts):
        counts.update(gathered)
    verdict = build(step, counts)
    return [other for text in texts for other in verdict(text).texts]


def share_of_women(texts: list[str]) -> float:
    counts = default_groups().mentioned(" ".join(texts))
    return counts["gender/women"] / (counts["gender/women"] + counts["gender/men"])


@pytest.mark.parametrize("by", ["repeat", "thin"])
@pytest.mark.parametrize("women", [0.5, 0.4])
def test_mentions_come_to_their_targets(by: str, women: float) -> None:
    left = through(TEXTS, by=by, targets={"women": women, "men": 1 - women})
    assert share_of_women(TEXTS) < 0.3
    assert share_of_women(left) == pytest.approx(women, abs=0.02)
    assert set(left) <= set(TEXTS)
    others = [text for text in TEXTS if text.startswith("It")]
    assert [text for text in left if text.startswith("It")] == others
    if by == "repeat":
        assert set(left) == set(TEXTS)
    else:
        assert len(set(left)) == len(left) < len(TEXTS)
        assert [text for text in left if text.startswith("She")] == TEXTS[600:800]


def test_equal_shares_when_left_out_and_the_same_each_time() -> None:
    assert through(TEXTS) == through(TEXTS, targets={"men": 1, "women": 1})
    assert sorted(through(TEXTS[::-1])) == sorted(through(TEXTS))


def test_no_text_comes_more_often_than_four_times() -> None:
    left = Counter(through([*TEXTS[:600], TEXTS[601]], targets={"women": 0.9, "men": 0.1}))
    assert max(left.values()) <= COPIES_MAX


def test_it_says_what_it_did() -> None:
    counts = Counter({"men/men": 300, "women/women": 100})
    assert build(Settings(), counts)("She sang.").found == ("repeated women",)
    assert build(Settings(), counts)("She sang.").texts == ("She sang.",) * 3
    assert build(Settings(), counts)("He sang.").found == ()
    found = {build(Settings(by="thin"), counts)(f"He sang {number}.").found for number in range(20)}
    assert found == {(), ("thinned men",)}


def test_groups_that_nobody_names_are_left_out_of_the_sum() -> None:
    counts = Counter({"muslim/muslim": 10, "jewish/jewish": 20})
    targets = {"muslim": 0.25, "jewish": 0.25, "sikh": 0.5}
    assert copies_by_group(counts, targets, by="repeat") == pytest.approx({"jewish": 1, "muslim": 2})
    assert copies_by_group(Counter(), targets, by="repeat") == {}


def test_groups_of_the_recipe() -> None:
    more = {"pets": {"cats": "cat cats", "dogs": "dog dogs"}}
    left = through([f"A dog {n}." for n in range(20)] + ["A cat."] * 10, category="pets", groups=more)
    assert Counter(text.split()[1].strip(".") for text in left) == {"dog": 20, "cat": 20}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"category": "gendre"}, "no category 'gendre', did you mean gender?"),
        ({"targets": {"woman": 0.5, "men": 0.5}}, "no group of gender 'woman', did you mean women?"),
        ({"targets": {"women": 0.5}}, "give the shares of at least two groups"),
        ({"targets": {"women": 0.0, "men": 1.0}}, "the share of 'women' must be above 0"),
        ({"category": "x"}, "no category 'x'; there are gender, nationality, religion, age"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(options)
    assert [error["msg"] for error in caught.value.errors()] == [message]
