"""Mixes and splits: weights count, the same rows every time, and what is held out stays held out."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from llmpipe.data import storyworld
from llmpipe.data.sources import FEW_DOCUMENTS, read_conversations, read_texts, split_texts
from llmpipe.settings import BuiltinSource


def source(**options) -> list[BuiltinSource]:
    return [BuiltinSource(builtin="storyworld", **options)]


def test_rows_are_honoured(ctx) -> None:
    assert len(list(read_texts(source(rows=37), ctx))) == 37
    assert len(list(read_conversations(source(rows=23), ctx))) == 23


@pytest.mark.parametrize(("weight", "least", "most"), [(2.0, 400, 400), (0.5, 70, 130), (2.5, 470, 530)])
def test_weights(weight, least, most, ctx) -> None:
    plain = list(read_texts(source(rows=200), ctx))
    mixed = list(read_texts(source(rows=200, weight=weight), ctx))
    assert mixed == list(read_texts(source(rows=200, weight=weight), ctx))
    assert least <= len(mixed) <= most
    assert set(mixed) <= set(plain)
    assert list(dict.fromkeys(mixed)) == [text for text in dict.fromkeys(plain) if text in set(mixed)]


def test_a_mix_is_the_sum_of_its_parts(ctx) -> None:
    mixed = Counter(read_texts([*source(rows=30), *source(rows=20, weight=2.0)], ctx))
    assert mixed.total() == 70


def test_the_split_stays_when_rows_are_added() -> None:
    documents = list(dict.fromkeys(islice(storyworld.corpus(stories=300, seed=1), 300)))
    splits = []
    for count in (100, 250):
        train, held_out = split_texts(documents[:count], share=0.2)
        splits.append((set(train), set(held_out)))
    assert splits[0][0] <= splits[1][0] and splits[0][1] <= splits[1][1]
    assert not splits[1][0] & splits[1][1]
    assert 0.1 < len(splits[1][1]) / 250 < 0.3


def test_few_documents_give_their_tails() -> None:
    documents = [f"{number:02}" + "x" * 98 for number in range(FEW_DOCUMENTS - 1)]
    train, held_out = split_texts(documents, share=0.1)
    kept = list(train)
    assert [head + tail for head, tail in zip(kept, held_out, strict=True)] == documents
    assert {len(tail) for tail in held_out} == {10}


@pytest.mark.parametrize("count", [3, 60])
def test_a_share_of_zero_holds_nothing_out(count) -> None:
    documents = [f"text {number}" for number in range(count)]
    train, held_out = split_texts(documents, share=0)
    assert list(train) == documents and held_out == []
