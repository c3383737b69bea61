"""Labelled texts, from every file that rows come from, and the measures of a classifier by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmpipe.data import Row
from llmpipe.data.classes import Classed, classed, classes_of
from llmpipe.data.rows import read_rows
from llmpipe.errors import DataError, UsageError
from llmpipe.evaluation.classes import measure


def read(*values: dict[str, Any], **how: Any) -> list[Classed]:
    rows = [Row(f"a.jsonl:{number}", value) for number, value in enumerate(values, 1)]
    return [one for _, one in classed(rows, **how)]


@pytest.mark.parametrize(
    ("label", "text"), [("hate", "hate"), (" hate ", "hate"), (2, "2"), (-1, "-1"), (True, "true"), ("2", "2")]
)
def test_labels_are_text_numbers_or_true_and_false(label: Any, text: str) -> None:
    (one,) = read({"text": "Hello.", "label": label})
    assert one == Classed("Hello.", text)
    assert one.asked == "Hello."


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"text": "a", "label": 1.5}, "label is a number, not text or a whole number"),
        ({"text": "a", "label": None}, "label is null, not text or a whole number"),
        ({"text": "a", "label": " "}, "label is empty"),
        ({"text": " ", "label": "x"}, "text is empty"),
        ({"text": 3, "label": "x"}, "text is a number, not text"),
    ],
)
def test_what_is_no_label_or_no_text(row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError) as caught:
        read({"text": "a", "label": "x"}, row)
    assert str(caught.value) == f"a.jsonl:2: {what}"


def test_columns_of_other_names_in_a_csv_file(tmp_path: Path) -> None:
    """The user's own `text` column, which is something else, gives way."""
    path = tmp_path / "a.csv"
    path.write_text(',text,class,tweet\n0,id1,2,"Good, ""old"" day"\n1,id2,0,"Go\naway"\n', encoding="utf-8")
    found = [one for _, one in classed(read_rows([path]), columns={"text": "tweet", "label": "class"})]
    assert found == [Classed('Good, "old" day', "2"), Classed("Go\naway", "0")]


def test_rows_without_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read({"tweet": "a", "class": 1})
    assert str(caught.value) == (
        "a.jsonl:1: no format fits the columns tweet, class; one of these is needed:\n  text-label: text, label"
    )
    assert caught.value.hint == "say which column is which with `columns`"


def some(*labels: str) -> list[Classed]:
    return [Classed(str(number), label) for number, label in enumerate(labels)]


def test_numbers_come_in_their_own_order_and_words_by_the_alphabet() -> None:
    assert classes_of(some("10", "9", "-1", "9", "10", "10"), None)[1] == ["-1", "9", "10"]
    assert classes_of(some("b", "a", "b", "b"), None) == ({"a": 0, "b": 1}, ["a", "b"])


def test_labels_of_one_name_become_one_class() -> None:
    names = {"0": "bad", "1": "bad", "2": "fine"}
    assert classes_of(some("2", "1", "0", "2", "2", "1"), names) == ({"0": 0, "1": 0, "2": 1}, ["bad", "fine"])


ALONE = "a classifier tells two classes or more apart"


@pytest.mark.parametrize(
    ("labels", "names", "what"),
    [
        ("a a", None, f"every row has the label 'a'; {ALONE}"),
        ("a b c d e", None, "5 rows have 5 different labels; those are no classes"),
        ("a b", {"a": "x", "b": "x"}, f"`labels` makes one class of all rows, 'x'; {ALONE}"),
        ("a b", {"a": "x"}, "labels: the rows also have 'b'"),
        ("spam ham", {"spam": "x", "hamm": "y"}, "labels: no row has the label 'hamm', did you mean ham?"),
        ("0 1", {"7": "x"}, "labels: no row has the label '7'; there are 0, 1"),
    ],
)
def test_labels_that_make_no_classes(labels: str, names: Any, what: str) -> None:
    with pytest.raises((DataError, UsageError)) as caught:
        classes_of(some(*labels.split()), names)
    assert str(caught.value) == what


def test_measures_by_hand() -> None:
    found = measure([[3, 1, 0], [2, 4, 0], [0, 0, 0]], ["a", "b", "c"])
    assert found["accuracy"] == 0.7
    assert found["by_class"]["a"] == {"rows": 4, "precision": 0.6, "recall": 0.75, "f1": pytest.approx(2 / 3)}
    assert found["by_class"]["b"] == {"rows": 6, "precision": 0.8, "recall": pytest.approx(2 / 3), "f1": 8 / 11}
    assert found["by_class"]["c"] == {"rows": 0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert found["macro_f1"] == pytest.approx((2 / 3 + 8 / 11) / 2)  # c was never there, and never predicted
    assert found["confusion"]["b"] == {"a": 2, "b": 4, "c": 0}


def test_a_class_that_is_never_predicted_counts_as_0() -> None:
    found = measure([[9, 0], [1, 0]], ["a", "b"])
    assert found["macro_f1"] == pytest.approx((18 / 19 + 0) / 2)
