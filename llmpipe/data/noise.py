"""Faults planted into storyworld, such as text from the web has, with the key to them: for the curate stage to find.

Copies and near copies of earlier stories, menus, other languages, personal data (invented), and stories whose letters
were broken on the way. Everything is a function of its arguments, as the stories are.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

KINDS = ("copy", "near copy", "menu", "other language", "personal data", "broken letters")
REMEMBERED = 500
FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}

FOREIGN = (
    "Es war einmal eine kleine Ente, die wohnte in einem alten Haus am Fluss. Jeden Morgen ging sie in den Wald und "
    "suchte Beeren für ihre Freunde. Am Abend saßen sie alle zusammen und erzählten sich Geschichten.",
    "Il était une fois un petit canard qui habitait dans une vieille maison près de la rivière. Chaque matin il allait "
    "dans la forêt et cherchait des fruits pour ses amis. Le soir, ils racontaient tous des histoires.",
    "Había una vez un pato pequeño que vivía en una casa vieja cerca del río. Cada mañana iba al bosque y buscaba "
    "frutas para sus amigos. Por la noche todos se sentaban juntos y contaban historias.",
)
MENU = ("Home", "About us", "Contact", "Log in", "Sign up", "News", "Shop", "Cart", "Help", "Share", "Next", "Search")
PERSONAL = (
    "Write to {name}.{number}@example.com for the rest.",
    "Call {name} at +1 212 555 0{number:03} for the rest.",
    "It was posted by {name} from 84.17.{number}.9 last night.",
)
NAMES = ("anna", "bob", "carla", "dan", "emma")


@dataclass(frozen=True, slots=True)
class Planted:
    """A text, the kind of fault it has (None for a story as it is), and what of it should be left."""

    text: str
    kind: str | None
    meant: str | None


def plant(stories: Iterable[str], *, share: float, seed: int) -> Iterator[Planted]:
    """Yield the stories among faults; `share` of them come with one, of each kind in turn."""
    rng = random.Random(seed)
    kinds = cycle(KINDS)
    earlier: list[str] = []
    for number, story in enumerate(stories):
        kind = next(kinds) if number >= REMEMBERED and rng.random() < share else None
        if kind == "broken letters":
            yield Planted(_broken(story, rng), kind, story)
        else:
            yield Planted(story, None, story)
            if kind is not None:
                yield Planted(_fault(kind, rng.choice(earlier), rng), kind, None)
        earlier.append(story)
        del earlier[:-REMEMBERED]


def score(left: Iterable[str], planted: Iterable[Planted]) -> dict[str, Any]:
    """Compare what is left with what should be: recall and precision over all faults, and the count found by kind."""
    surplus, kinds = Counter(left), Counter[str]()
    of_text: dict[str, str] = {}
    for one in planted:
        if one.kind is not None:
            kinds[one.kind] += 1
            of_text[one.text] = one.kind
        if one.meant is not None:
            surplus[one.meant] -= 1
    missed = Counter[str]()
    for text, count in surplus.items():
        if count > 0:
            missed[of_text.get(text, "copy")] += count
    lost = -sum(count for count in surplus.values() if count < 0)
    found = kinds.total() - missed.total()
    return {
        "planted": kinds.total(),
        "planted_recall": round(found / max(1, kinds.total()), 4),
        "planted_precision": round(found / max(1, found + lost), 4),
        "planted_kinds": {kind: [kinds[kind] - missed[kind], kinds[kind]] for kind in KINDS},
    }


def _fault(kind: str, story: str, rng: random.Random) -> str:
    match kind:
        case "copy":
            return story.replace(". ", rng.choice((". ", ".  ", ".\n")), 1)
        case "near copy":
            return rng.choice((f"{story} The end.", f"Story {rng.randrange(100)}. {story}", f"{story[:-1]} again."))
        case "menu":
            return rng.choice((" | ", " > ", "\n- ")).join(rng.sample(MENU, k=8))
        case "other language":
            return rng.choice(FOREIGN)
        case _:
            return f"{story} {rng.choice(PERSONAL).format(name=rng.choice(NAMES), number=rng.randrange(1, 100))}"


def _broken(story: str, rng: random.Random) -> str:
    """Break letters in a way that can be undone: full-width forms, a byte order mark, codes for colour."""
    word = rng.choice(story.split())
    wide, bold = word.translate(FULL_WIDTH), f"\x1b[1m{word}\x1b[0m"
    return rng.choice((story.replace(word, wide, 1), story.replace(word, bold, 1), f"\ufeff{story}"))
