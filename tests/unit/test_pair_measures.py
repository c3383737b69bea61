"""Measures of rewards on held-out pairs, against figures worked out by hand."""

from __future__ import annotations

import math

import pytest

from llmpipe.evaluation.pairs import accuracy, auc, calibration, correlation, measure, wilson


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    # R: prop.test(x, n, correct = FALSE); the last two by the formula, where x is 0 or n
    [(50, 100, 0.40383, 0.59617), (9, 10, 0.59585, 0.98212), (0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0)],
)
def test_interval(right, of, low, high) -> None:
    assert wilson(right, of) == pytest.approx((low, high), abs=1e-4)


def test_a_tie_is_half_right() -> None:
    found = accuracy([1.0, 0.0, -2.0, 3.0])
    assert (found["held_out_accuracy"], found["held_out_pairs"]) == (0.625, 4)


def test_a_sure_and_wrong_model_is_badly_calibrated() -> None:
    sure = math.log(9)  # 90 % sure
    error, bins = calibration([sure + 1e-9] * 9 + [-sure - 1e-9])
    assert error == pytest.approx(0.0, abs=1e-6)
    (only,) = bins
    assert (only["from"], only["pairs"], only["accuracy"]) == (pytest.approx(0.9), 10, 0.9)
    error, _ = calibration([-sure - 1e-9] * 10)
    assert error == pytest.approx(0.9, abs=1e-6)


def test_bins_are_weighed_by_their_pairs() -> None:
    error, bins = calibration([0.0, 0.0, 0.0, 40.0])
    assert [entry["pairs"] for entry in bins] == [3, 1]
    assert error == 0.0  # an undecided model is right half of the time, by definition
    error, _ = calibration([0.0, 0.0, 0.0, -40.0])
    assert error == 0.25


@pytest.mark.parametrize("margin", [800.0, -800.0])
def test_huge_margins_do_no_harm(margin) -> None:
    assert calibration([margin])[1][0]["confidence"] == 1.0


def test_correlation() -> None:
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert correlation([1, 2, 3, 4], [1, 0, 0, 1]) == pytest.approx(0.0)
    assert correlation([1, 1, 1], [1, 2, 3]) is None


def test_a_liking_for_length_shows() -> None:
    """The model always takes the longer answer; the data do so once in three times, and one pair is even."""
    found = measure([(2.0, 1.0), (1.0, 2.0), (1.0, 2.0), (0.5, 0.4)], [(8, 4), (4, 8), (4, 8), (5, 5)])
    assert found["longer_wins_share"] == 1.0
    assert found["longer_chosen_share"] == pytest.approx(1 / 3)
    assert found["length_correlation"] == pytest.approx(0.844, abs=1e-3)
    assert found["held_out_accuracy"] == 0.5
    assert found["mean_margin"] == pytest.approx(-0.225)
    assert found["reward_mean"] == pytest.approx(9.9 / 8)
    even = measure([(1.0, 0.0)], [(3, 3)])
    assert (even["longer_wins_share"], even["length_correlation"]) == (None, None)


@pytest.mark.parametrize(
    ("good", "bad", "area"),
    [
        ([2.0, 3.0], [1.0], 1.0),
        ([1.0], [2.0, 3.0, 0.0], 1 / 3),
        ([1.0, 2.0], [1.0], 0.75),
        ([], [1.0], None),
        ([1.0], [], None),
    ],
)
def test_how_often_a_good_answer_beats_a_bad_one(good: list[float], bad: list[float], area: float | None) -> None:
    assert auc(good, bad) == area
