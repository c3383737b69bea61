"""Personal data, swaps and toxicity on public data; figures are of the half that no rule was tuned on."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter

import pytest

from llmpipe.curation import toxicity
from llmpipe.curation.bias import count, report
from llmpipe.curation.pronouns import owns_what_follows, swapped
from llmpipe.curation.swap import Settings, build
from tests.real.shared import real
from tests.unit.people import Score, presidio, scores
from tests.unit.test_pii import LEAST


@pytest.fixture(scope="module")
def second_half() -> dict[str, Score]:
    rows = presidio(real("pii", "presidio_synth_first750.json"))
    return scores(rows[len(rows) // 2 :])


@pytest.mark.parametrize("kind", LEAST)
def test_personal_data_is_found_as_promised(kind: str, second_half: dict[str, Score]) -> None:
    score = second_half[kind]
    assert score.there > 0
    assert score.recall >= LEAST[kind][0]
    assert score.precision >= LEAST[kind][1]


def winogender(gender: str) -> list[str]:
    rows = real("safety", f"winogender_mc_{gender}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["query"].split('"')[1] for row in rows]


@pytest.mark.parametrize("gender", ["male", "female"])
def test_winogender_swaps_and_swaps_back(gender: str) -> None:
    sentences = winogender(gender)
    others = [swapped(sentence, names=True) for sentence in sentences]
    assert len(sentences) == 60
    assert all(other != sentence for other, sentence in zip(others, sentences, strict=True))
    assert [swapped(other, names=True) for other in others] == sentences


def test_winogender_with_its_twins_names_both_as_often() -> None:
    sentences = winogender("male")
    step = build(Settings(share=1, add=True))
    before, after = Counter[str](), Counter[str]()
    for sentence in sentences:
        before.update(count(sentence))
        for text in step(sentence).texts:
            after.update(count(text))
    gender = report(before, after)["groups"]["gender"]
    assert gender["men"]["before"]["share"] == 1.0
    assert gender["men"]["after"]["share"] == gender["women"]["after"]["share"] == 0.5
    # a sentence and its twin differ in the pronoun alone: no word is left that goes together with either
    assert gender["men"]["after"]["words"] == gender["women"]["after"]["words"] == []


def test_her_is_him_or_his_by_what_follows() -> None:
    """Text about men tells which it was: every `him` and `his` is read as if it said `her`."""
    text = real("pretrain", "wikitext2.valid.txt").read_text(encoding="utf-8").replace("<unk>", "word")
    text = text[len(text) // 2 :]  # the rule was tuned on the first half
    said = [(match[0].lower() == "his", match) for match in re.finditer(r"\b(?:him|his)\b", text, re.IGNORECASE)]
    right = sum(owns_what_follows(text, match) == is_his for is_his, match in said)
    assert len(said) > 400
    assert right / len(said) >= 0.94


def test_toxicity_tells_insults_from_web_pages() -> None:
    with real("safety", "davidson_train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[6000:]  # the list was written with the first half in view
    drops = toxicity.build(toxicity.Settings())
    dropped = [row["class"] != "2" for row in rows if not drops(row["tweet"]).texts]
    assert sum(dropped) / sum(row["class"] != "2" for row in rows) >= 0.90
    assert sum(dropped) / len(dropped) >= 0.97
    pages = real("pretrain", "c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(not drops(json.loads(page)["text"]).texts for page in pages) <= 3


def test_a_list_of_ones_own_with_phrases() -> None:
    words: dict[toxicity.Severity, list[str]] = {"mild": [], "strong": [], "severe": []}
    with real("safety", "profanity_en.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            words[row["severity_description"].lower()].append(row["text"])
    drops = toxicity.build(toxicity.Settings(words=words, severity="mild"))
    assert all(not drops(f"so {word} there").texts for listed in words.values() for word in listed)
