"""Real labelled answers: read, told apart by their labels, and said of where they are not."""

from __future__ import annotations

from llmpipe.data.labelled import labelled
from llmpipe.data.rows import read_rows
from tests.real.shared import real


def test_labelled_answers() -> None:
    found = [one for _, one in labelled(read_rows([real("preference/kto_en_demo.json")]))]
    assert len(found) == 300
    assert 0 < sum(one.is_good for one in found) < 300
    assert all(one.prompt[-1]["role"] == "user" and one.answer[-1]["role"] == "assistant" for one in found)


def test_pairs_are_read_as_answers() -> None:
    found = [one for _, one in labelled(read_rows([real("preference/dpo_en_demo.json")]))]
    assert sum(one.is_good for one in found) == len(found) / 2 > 100
