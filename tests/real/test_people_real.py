"""Personal data in presidio's synthetic texts: figures on the half that no rule was tuned on."""

from __future__ import annotations

import pytest

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
