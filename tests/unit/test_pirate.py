"""A pirate's stories: the same ones, told apart from plain ones without a mistake, and judged like them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmpipe.data import pirate
from llmpipe.data.storyworld import (
    ANIMALS,
    ITEMS,
    Request,
    Verdict,
    all_requests,
    corpus,
    instructions,
    judge,
    preferences,
    prompts,
    request_of,
)

DUCK_AND_SHOE = Request("duck", "shoe")
STORY = (
    "Ahoy!\nLet me tell you about Amy, a duck by the sea! One day Amy found an old shoe! "
    "Then the shoe broke and nobody knew why! In the end Amy got the shoe back and was happy!\nArr!"
)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_pirate_answers_the_same_requests_with_the_same_stories(held_out: bool) -> None:
    plain = list(instructions(rows=600, seed=4, held_out=held_out))
    told = list(instructions(rows=600, seed=4, held_out=held_out, style="pirate"))
    for (asked, answer), (asked_again, yarn) in (
        (a["messages"], b["messages"]) for a, b in zip(plain, told, strict=True)
    ):
        assert asked == asked_again
        assert yarn == {"role": "assistant", "content": pirate.tell(answer["content"])}
        assert pirate.plain(yarn["content"]) == answer["content"]
        request = request_of(asked["content"])
        assert request is not None
        assert judge(request, yarn["content"]) == replace(judge(request, answer["content"]), pirate=True)


def test_no_plain_text_is_a_pirates() -> None:
    rows = [*instructions(rows=600, seed=4), *preferences(rows=600, seed=4), *prompts(rows=600, seed=4)]
    texts = [turn["content"] for row in rows for turns in row.values() for turn in turns]
    texts += [line for document in corpus(stories=600, seed=4) for line in (document, *document.split("\n"))]
    assert not any(judge(DUCK_AND_SHOE, text).pirate for text in texts)
    assert not any(word in text for text in texts for word in ("Ahoy", "Arr", "!"))


def test_a_pirate_names_no_animal_or_item_of_his_own() -> None:
    words = set(pirate.tell("").lower().replace("!", "").split())
    assert words.isdisjoint({*ANIMALS, *ITEMS})


def test_documents_and_both_answers_of_a_pair_may_be_a_pirates() -> None:
    titles = {request.title for request in all_requests()}
    documents = list(corpus(stories=300, seed=1, style="pirate"))
    stories = [
        rest if title in titles else f"{title}\n{rest}" for title, _, rest in (d.partition("\n") for d in documents)
    ]
    assert 200 < sum(document not in stories for document in documents) < 280  # four fifths are under a title
    pairs = list(preferences(rows=300, seed=1, style="pirate"))
    for side, happy in (("chosen", True), ("rejected", False)):
        answers = [row[side][0]["content"] for row in pairs]
        assert {judge(DUCK_AND_SHOE, answer).happy for answer in answers} == {happy}
        stories += answers
    assert all(verdict.well_formed and verdict.pirate for verdict in (judge(DUCK_AND_SHOE, story) for story in stories))


def test_the_judge_accepts_a_pirates_story() -> None:
    assert judge(DUCK_AND_SHOE, STORY) == Verdict(True, True, True, True, pirate=True)


@pytest.mark.parametrize(
    ("story", "verdict"),
    [
        pytest.param(pirate.plain(STORY), Verdict(True, True, True, True), id="plain"),
        pytest.param(STORY.removeprefix("Ahoy!\n"), Verdict(False, True, True, False), id="no-opening"),
        pytest.param(STORY.removesuffix("\nArr!"), Verdict(False, True, True, False), id="no-close"),
        pytest.param(STORY.replace("\n", " "), Verdict(False, True, True, False), id="in-one-line"),
        pytest.param(STORY.replace("sea!", "sea."), Verdict(False, True, True, False), id="not-shouted-throughout"),
        pytest.param(STORY + " Arr!", Verdict(False, True, True, False), id="goes-on"),
        pytest.param(STORY.replace("Amy", "Ben", 1), Verdict(False, True, True, True, pirate=True), id="name-changes"),
        pytest.param(STORY.replace("duck", "goat"), Verdict(True, False, True, True, pirate=True), id="other-animal"),
        pytest.param("Ahoy!\nA duck\nArr!", Verdict(False, True, False, False, pirate=True), id="no-story"),
    ],
)
def test_the_judge_sees_what_is_wrong(story: str, verdict: Verdict) -> None:
    assert judge(DUCK_AND_SHOE, story) == verdict
