"""Paired differences: the figures are those of the sums, and the interval knows that the items are the same."""

from __future__ import annotations

import math
import random

import pytest

from llmpipe.evaluation.changes import Items, bits_per_byte, change, perplexity, share, table


def test_a_share_that_moved() -> None:
    before, after = [False] * 50 + [True] * 50, [False] * 20 + [True] * 80
    found = change(share(before), share(after), seed=1)
    assert (found["before"], found["after"], found["items"]) == (0.5, 0.8, 100)
    low, high = found["interval"]
    assert 0.18 < low < 0.3 < high < 0.42


def test_what_is_hard_for_both_makes_no_interval_wider() -> None:
    draw = random.Random(0)
    nats = [draw.uniform(10, 1000) for _ in range(200)]
    tokens = [100] * 200
    found = change(perplexity(nats, tokens), perplexity([0.9 * value for value in nats], tokens), seed=1)
    assert found["before"] == pytest.approx(math.exp(sum(nats) / 20_000))
    assert found["interval"][1] < 0
    bits = change(bits_per_byte(nats, tokens), bits_per_byte([value - 10 for value in nats], tokens), seed=1)
    assert bits["interval"] == pytest.approx([bits["change"]] * 2)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw, held = random.Random(3), 0
    for trial in range(200):
        pairs = [(draw.random() < 0.4, draw.random() < 0.6) for _ in range(100)]
        low, high = change(*(share(side) for side in zip(*pairs, strict=True)), seed=trial)["interval"]
        held += low <= 0.2 <= high
    assert 180 <= held <= 200


def test_more_items_than_blocks_give_the_same() -> None:
    tops = [float(n % 7) for n in range(2500)]
    found = change(Items(tops, [1.0] * 2500), Items([top + 1 for top in tops], [1.0] * 2500), seed=1)
    assert found["interval"] == pytest.approx([1, 1]) and found["items"] == 2500


def test_only_what_both_have_is_compared() -> None:
    found = change(share([True] * 12), share([False] * 30), seed=1)
    assert found["items"] == 12 and found["change"] == -1


def test_too_few_items_have_no_interval() -> None:
    assert change(share([True] * 9), share([False] * 9), seed=1)["interval"] is None


def test_a_standard_error_is_no_figure_of_its_own() -> None:
    measured = {name: {"copa.acc": 0.5, "copa.acc_stderr": 0.1} for name in ("a", "b")}
    assert [row["metric"] for row in table(measured, {}, [("a", "b")], seed=1)] == ["copa.acc"]


def test_the_table_goes_from_model_to_model() -> None:
    measured = {"a": {"x": 1.0, "samples": ["s"]}, "b": {"x": 3.0, "y": 1.0, "samples": ["t"]}}
    (row,) = table(measured, {}, [("a", "b")], seed=1)
    assert row == {
        **{"from": "a", "to": "b", "metric": "x", "before": 1.0, "after": 3.0, "change": 2.0},
        **{"interval": None, "items": None},
    }
