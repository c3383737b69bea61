"""reweight: repeats texts about groups named too seldom, or thins those about the others, towards given shares.

A text counts to the group that it names most; what names none of them stays as it is. Sampling by group after Kamiran
and Calders 2012 ("Data preprocessing techniques for classification without discrimination"). Repeating stops at four
copies, as many as cost little (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from llmpipe.curation import Verdict
from llmpipe.curation.groups import Groups, MoreGroups, draw, groups, known
from llmpipe.settings import Strict

ROUNDS = 200
COPIES_MAX = 4


class Settings(Strict):
    """Whose mentions are brought to which shares, and how."""

    step: Literal["reweight"] = "reweight"
    groups: MoreGroups = Field(default_factory=dict)
    category: str = Field("gender", description="the groups that are weighed: gender, nationality, religion, age")
    targets: dict[str, float] | None = Field(
        None, description="share of the mentions for each group, {women: 0.5, men: 0.5}; equal ones when left out"
    )
    by: Literal["repeat", "thin"] = Field("repeat", description="repeat what is rare, or thin out what is frequent")

    @field_validator("category")
    @classmethod
    def _is_known(cls, category: str, info: ValidationInfo) -> str:
        known(category, tuple(groups(info.data.get("groups", {})).by_category), "category")
        return category

    @field_validator("targets")
    @classmethod
    def _are_known(cls, targets: dict[str, float] | None, info: ValidationInfo) -> dict[str, float] | None:
        if targets is None or "category" not in info.data:
            return targets
        category = info.data["category"]
        for name, share in targets.items():
            known(name, groups(info.data.get("groups", {})).by_category[category], f"group of {category}")
            if not 0 < share < math.inf:
                raise PydanticCustomError("step", "the share of '{name}' must be above 0", {"name": name})
        if len(targets) < 2:
            raise PydanticCustomError("step", "give the shares of at least two groups")
        return targets


def gather(settings: Settings) -> Callable[[str], Counter[str]]:
    """Return a function that counts `a/b`: the mentions of group b in texts that name group a most."""
    listed, names = groups(settings.groups), _names(settings)

    def count(text: str) -> Counter[str]:
        mentions = _mentions(text, listed, settings.category, names)
        most = _most(mentions)
        return Counter({f"{most}/{name}": number for name, number in mentions.items()})

    return count


def build(settings: Settings, counts: Counter[str]) -> Callable[[str], Verdict]:
    """Return the step; it finds `repeated women`, `thinned men`."""
    listed, names = groups(settings.groups), _names(settings)
    copies = copies_by_group(counts, _targets(settings, names), by=settings.by)
    place = draw("reweight")

    def step(text: str) -> Verdict:
        most = _most(_mentions(text, listed, settings.category, names))
        wanted = copies.get(most, 1.0) if most else 1.0
        number = math.floor(wanted) + (place(text) < wanted % 1)
        if number == 1:
            return Verdict((text,))
        return Verdict((text,) * number, (f"{'repeated' if number else 'thinned'} {most}",))

    return step


def copies_by_group(
    counts: Mapping[str, int], targets: Mapping[str, float], *, by: Literal["repeat", "thin"]
) -> dict[str, float]:
    """Return how many copies a text of each group gets on average, so that mentions come to the targets' shares.

    Texts about one group name others as well, so the weights are found together: each is moved by the square root of
    how far its share is off, until they settle. `repeat` leaves the most frequent group at one copy, `thin` the rarest.
    """
    there = {name for name in targets if any(counts.get(f"{name}/{other}", 0) for other in targets)}
    if not there:
        return {}
    wanted = sum(targets[name] for name in there)
    weights = dict.fromkeys(sorted(there), 1.0)
    for _ in range(ROUNDS):
        mentions = {
            name: sum(weight * counts.get(f"{most}/{name}", 0) for most, weight in weights.items()) for name in weights
        }
        total = sum(mentions.values())
        for name in weights:
            weights[name] *= math.sqrt(targets[name] / wanted / (mentions[name] / total))
        middle = sum(weights.values()) / len(weights)
        weights = {name: weight / middle for name, weight in weights.items()}
    one = min(weights.values()) if by == "repeat" else max(weights.values())
    return {name: min(weight / one, COPIES_MAX) for name, weight in weights.items()}


def _names(settings: Settings) -> tuple[str, ...]:
    return tuple(settings.targets or groups(settings.groups).by_category[settings.category])


def _targets(settings: Settings, names: tuple[str, ...]) -> dict[str, float]:
    return settings.targets or dict.fromkeys(names, 1 / len(names))


def _mentions(text: str, listed: Groups, category: str, names: tuple[str, ...]) -> Counter[str]:
    mentions = listed.mentioned(text)
    return Counter({name: mentions[f"{category}/{name}"] for name in names if mentions[f"{category}/{name}"]})


def _most(mentions: Counter[str]) -> str | None:
    """Return the group that is named most; of several the first by name."""
    return min(mentions, key=lambda name: (-mentions[name], name), default=None)
