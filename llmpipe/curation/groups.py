"""Groups of people and the words that name them: those of people.toml, and those that a recipe adds.

>>> default_groups().of_word["she"]
('gender/women',)
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from llmpipe.errors import did_you_mean

WORD = re.compile(r"[^\W\d_]+")
MEN, WOMEN = "he him his", "she her hers mrs"


def _words_alone(groups: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    for category, names in groups.items():
        for name in (category, *names):
            if not re.fullmatch(r"[\w -]+", name):
                raise PydanticCustomError("name", "'{name}' must be letters, digits and spaces", {"name": name})
        for words in names.values():
            for word in words.split():
                if not WORD.fullmatch(word):
                    raise PydanticCustomError("word", "'{word}' must be one word, of letters alone", {"word": word})
    return groups


MoreGroups = Annotated[
    dict[str, dict[str, str]],
    AfterValidator(_words_alone),
    Field(description="words by category and group, beside the package's: {profession: {nurses: nurse nurses}}"),
]


@dataclass(frozen=True)
class Groups:
    """Groups by category, and the groups that each word names, as `category/group`."""

    by_category: Mapping[str, tuple[str, ...]]
    of_word: Mapping[str, tuple[str, ...]]

    def mentioned(self, text: str) -> Counter[str]:
        """Count the words of a text that name each group."""
        found: Counter[str] = Counter()
        for word in WORD.findall(text.lower()):
            found.update(self.of_word.get(word, ()))
        return found


@cache
def people() -> dict[str, Any]:
    """Return what people.toml holds."""
    content: dict[str, Any] = tomllib.loads(
        files("llmpipe.curation").joinpath("people.toml").read_text(encoding="utf-8")
    )
    return content


def pairs(kind: str) -> list[tuple[str, str]]:
    """Return the pairs of man and woman, `words` or `names`."""
    lines = re.split(r"[|\n]", people()["pairs"][kind].strip())
    return [(man, woman) for man, woman in (line.split() for line in lines)]


@cache
def stop_words() -> frozenset[str]:
    """Return the words that say nothing about whom they stand beside."""
    return frozenset(people()["stop"]["words"].split())


def groups(more: Mapping[str, Mapping[str, str]]) -> Groups:
    """Return the package's groups with those that a recipe adds; words for a group that is there are added to it."""
    men, women = zip(*pairs("words"), strict=True)
    words = {"gender": {"men": MEN.split() + list(men), "women": WOMEN.split() + list(women)}}
    for category, names in (*people()["groups"].items(), *more.items()):
        for name, listed in names.items():
            words.setdefault(category, {}).setdefault(name, []).extend(listed.lower().split())
    of_word: dict[str, list[str]] = {}
    for category, named in words.items():
        for name, listed in named.items():
            for word in dict.fromkeys(listed):
                of_word.setdefault(word, []).append(f"{category}/{name}")
    return Groups(
        {category: tuple(named) for category, named in words.items()},
        {word: tuple(named) for word, named in of_word.items()},
    )


@cache
def default_groups() -> Groups:
    """Return the package's groups."""
    return groups({})


def known(name: str, among: tuple[str, ...], what: str) -> None:
    """Refuse the name of a category or group that there is none of, with the near one."""
    if name not in among:
        listed = did_you_mean(name, among) or f"; there are {', '.join(among)}"
        raise PydanticCustomError("group", "no {what} '{name}'{listed}", {"what": what, "name": name, "listed": listed})


def draw(salt: str) -> Callable[[str], float]:
    """Return a function of a text that is spread evenly over [0, 1): its hash, another one for each salt."""
    key = salt.encode()

    def share(text: str) -> float:
        return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6, key=key).digest()) / 2**48

    return share
