"""swap: puts he for she, Mary for John, so that what is said of one is said of the other as often.

Counterfactual data augmentation of Zhao et al. 2018 ("Gender Bias in Coreference Resolution") and Lu et al. 2018
("Gender Bias in Neural Natural Language Processing"), by word lists and a rule for `her` (pronouns.py). Which texts
are swapped, the hash of the text tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from llmpipe.curation import Verdict
from llmpipe.curation.groups import draw
from llmpipe.curation.pronouns import swapped
from llmpipe.settings import Strict


class Settings(Strict):
    """Which texts are swapped, and whether the original stays."""

    step: Literal["swap"] = "swap"
    share: float = Field(0.5, gt=0, le=1, description="of the texts that name a man or a woman, how many are swapped")
    add: bool = Field(False, description="keep the original too; with share: 1, men and women are named as often")
    names: bool = Field(True, description="exchange first names too, by the package's list")


def build(settings: Settings) -> Callable[[str], Verdict]:
    """Return the step; it finds `swapped`."""
    place = draw("swap")

    def step(text: str) -> Verdict:
        other = swapped(text, names=settings.names) if place(text) < settings.share else text
        if other == text:
            return Verdict((text,))
        return Verdict((text, other) if settings.add else (other,), ("swapped",))

    return step
