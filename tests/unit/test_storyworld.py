"""Storyworld: what the generators promise, and that the judge can tell a story from something else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

import pytest

from llmpipe.data.storyworld import (
    ANIMALS,
    HAPPY_ENDINGS,
    INTRODUCTIONS,
    ITEMS,
    MISHAPS,
    PHRASINGS,
    POSSESSIONS,
    SAD_ENDINGS,
    Request,
    Row,
    Verdict,
    all_requests,
    corpus,
    held_out_requests,
    instructions,
    judge,
    preferences,
    prompts,
    request_of,
)

ROWS = 2000
NOTHING = Verdict(well_formed=False, mentions_animal=False, mentions_item=False, happy=False)
HAPPY_WORDS, SAD_WORDS = r"\b(happy|joy|smiled)\b", r"\b(sad|tears|cried)\b"
DUCK_AND_SHOE = Request("duck", "shoe")
STORY = (
    "Once there was a duck named Amy who lived by the sea. One day Amy found an old shoe. "
    "Then the shoe broke and nobody knew why. They made it good again and Amy smiled all day."
)
FIRST_DOCUMENT = (
    "Mouse and cup.\n"
    "This is a short story about Sam, a mouse on an island. The mouse loved to play with a red cup. "
    "Soon somebody took the cup and ran away. No friend came to help and Sam went home in tears."
)
ROW_MAKERS = [instructions, preferences, prompts]


def asked(row: Row) -> Request:
    request = request_of((row.get("prompt") or row["messages"])[0]["content"])
    assert request is not None
    return request


def ends_happily(story: str) -> bool:
    """An oracle that shares no code with the judge: the feeling named in the last sentence."""
    happy, sad = (bool(re.search(words, story)) for words in (HAPPY_WORDS, SAD_WORDS))
    assert happy != sad, story
    return happy


def test_the_split_is_a_quarter_and_every_word_is_on_both_sides() -> None:
    everything, held_out = all_requests(), held_out_requests()
    assert len(everything) == len(set(everything)) == len(ANIMALS) * len(ITEMS) == 576
    assert held_out < set(everything)
    assert len(held_out) * 4 == len(everything)
    for side in (held_out, set(everything) - held_out):
        assert {request.animal for request in side} == set(ANIMALS)
        assert {request.item for request in side} == set(ITEMS)


@pytest.mark.parametrize("make", ROW_MAKERS)
def test_rows_stay_on_their_side_of_the_split_and_cover_it(make: Callable[..., Iterator[Row]]) -> None:
    held_out = held_out_requests()
    assert {asked(row) for row in make(rows=ROWS, seed=0)} == set(all_requests()) - held_out
    unseen = [asked(row) for row in make(rows=len(held_out), seed=0, held_out=True)]
    assert len(unseen) == len(held_out)
    assert set(unseen) == held_out  # each once before any repeats


@pytest.mark.parametrize("make", ROW_MAKERS)
def test_rows_depend_on_the_seed_alone(make: Callable[..., Iterator[Row]]) -> None:
    first = list(make(rows=50, seed=3))
    assert first == list(make(rows=50, seed=3)) == list(islice(make(rows=99, seed=3), 50))
    assert first != list(make(rows=50, seed=4))


def test_the_corpus_is_the_same_on_every_machine() -> None:
    assert list(corpus(stories=50, seed=3)) == list(corpus(stories=50, seed=3))
    assert next(corpus(stories=1, seed=0)) == FIRST_DOCUMENT


def test_corpus_documents_are_stories_most_under_their_title() -> None:
    documents = list(corpus(stories=ROWS, seed=1))
    by_title = {request.title: request for request in all_requests()}
    titled = [document.split("\n") for document in documents if "\n" in document]
    assert len(documents) == ROWS
    assert len(titled) / ROWS == pytest.approx(0.8, abs=0.03)
    assert all(judge(by_title[title], story).follows for title, story in titled)
    assert {by_title[title] for title, _ in titled} & held_out_requests()
    for document in documents:
        story = document.split("\n")[-1]
        verdict = judge(DUCK_AND_SHOE, story)
        assert verdict.well_formed, story
        assert verdict.happy == ends_happily(story)
        assert 30 <= len(story.split()) <= 45
    assert sum(map(ends_happily, documents)) / ROWS == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("held_out", [False, True])
def test_instructions_are_followed_and_half_of_them_end_happily(held_out: bool) -> None:
    happy = 0
    for row in instructions(rows=ROWS, seed=2, held_out=held_out):
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        verdict = judge(asked(row), assistant["content"])
        assert verdict.well_formed and verdict.follows
        assert verdict.happy == ends_happily(assistant["content"])
        happy += verdict.happy
    assert happy / ROWS == pytest.approx(0.5, abs=0.03)


def test_preferences_differ_in_the_ending_only_and_prefer_the_happy_one() -> None:
    for row in preferences(rows=ROWS, seed=5):
        (chosen,), (rejected,) = row["chosen"], row["rejected"]
        assert chosen["role"] == rejected["role"] == "assistant"
        good, bad = (judge(asked(row), answer["content"]) for answer in (chosen, rejected))
        assert good == Verdict(well_formed=True, mentions_animal=True, mentions_item=True, happy=True)
        assert bad == Verdict(well_formed=True, mentions_animal=True, mentions_item=True, happy=False)
        bodies = {answer["content"].rsplit(". ", 1)[0] for answer in (chosen, rejected)}
        assert len(bodies) == 1


def test_every_request_survives_the_way_through_its_prompts() -> None:
    for request in all_requests():
        assert request_of(request.prompt) == request
    phrased = [row["prompt"][0]["content"] for row in prompts(rows=ROWS, seed=6)]
    assert len({prompt.split()[0] for prompt in phrased}) == len(PHRASINGS)
    assert None not in map(request_of, phrased)
    assert Request("owl", "apple").prompt == "Tell me a story about an owl and an apple."
    assert DUCK_AND_SHOE.title == "Duck and shoe."


@pytest.mark.parametrize("prompt", ["", "Tell me a story.", "Tell me a story about a dragon and a shoe.", STORY])
def test_other_prompts_ask_for_nothing_known(prompt: str) -> None:
    assert request_of(prompt) is None


def test_templates_hold_no_animal_or_item_of_their_own() -> None:
    templates = " ".join(INTRODUCTIONS + POSSESSIONS + MISHAPS + HAPPY_ENDINGS + SAD_ENDINGS + PHRASINGS)
    plain_words = set(re.findall(r"\w+", re.sub(r"\{\w+\}", "", templates).lower()))
    assert plain_words.isdisjoint({*ANIMALS, *ITEMS})


def test_the_judge_accepts_a_story() -> None:
    assert judge(DUCK_AND_SHOE, STORY) == Verdict(True, True, True, True)


@pytest.mark.parametrize(
    ("story", "verdict"),
    [
        pytest.param("", NOTHING, id="empty"),
        pytest.param("xyzzy \x00 ...\n\u2603 Duckling shoes.", NOTHING, id="garbage"),
        pytest.param(STORY.rsplit(". ", 1)[0] + ".", Verdict(False, True, True, False), id="no-ending"),
        pytest.param(STORY[:-1], Verdict(False, True, True, False), id="no-last-full-stop"),
        pytest.param(STORY[:40], Verdict(False, True, False, False), id="truncated"),
        pytest.param(STORY.replace("duck", "goat"), Verdict(True, False, True, True), id="other-animal"),
        pytest.param(STORY.replace("shoe", "kite"), Verdict(True, True, False, True), id="other-item"),
        pytest.param(STORY.replace("shoe", "kite", 1), Verdict(False, True, True, True), id="item-changes"),
        pytest.param(STORY.replace("Amy", "Ben", 1), Verdict(False, True, True, True), id="name-changes"),
        pytest.param(STORY.replace("an old", "a old"), Verdict(False, True, True, True), id="wrong-article"),
        pytest.param(STORY + " The end.", Verdict(False, True, True, False), id="goes-on"),
        pytest.param("So " + STORY, Verdict(False, True, True, True), id="does-not-start-there"),
        pytest.param(STORY.replace("They made it", "It was never"), Verdict(False, True, True, False), id="half-sad"),
    ],
)
def test_the_judge_sees_what_is_wrong(story: str, verdict: Verdict) -> None:
    assert judge(DUCK_AND_SHOE, story) == verdict
