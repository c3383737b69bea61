"""Storyworld: a small grammar of children's stories, the embedded corpus of the quickstart.

A story is four sentences about a named animal and a thing: who and where, how the thing came along, what went
wrong, and an ending that is happy or sad with equal chance. Which one it is, only the last sentence tells.
So one corpus serves every stage of training, and :func:`judge` scores each of them without a second model:

* :func:`corpus` yields pretraining documents. Most open with a title ("Duck and shoe."), which teaches a
  small model to carry words from the top of a text into its story.
* :func:`instructions` yields chats, :func:`preferences` a happy and a sad answer to the same prompt, and
  :func:`prompts` prompts alone. ``held_out=True`` draws from the animal-item pairs that no training row of
  these three asks for. ``style="pirate"`` has a pirate tell the stories; the requests are the same.
* :func:`judge` says whether a text is a story of the grammar, does what was asked, ends happily, and in which style.

Everything is a function of its arguments: the same seed gives the same rows on every machine.

    >>> request = Request("duck", "shoe")
    >>> request.prompt
    'Tell me a story about a duck and a shoe.'
    >>> judge(request, "A duck lost a shoe.").follows
    True
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice, product
from typing import Literal

from llmpipe.data import pirate

Message = dict[str, str]  # {"role": ..., "content": ...}
Row = dict[str, list[Message]]  # one training row, its messages by column
Style = Literal["pirate"] | None  # None for plain stories


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# No template uses these words itself: an animal or an item is in a story only because a slot put it there.
# There are few enough for a BPE vocabulary of 1,024 to hold each as one token.
ANIMALS = _words(
    "ant bear bee cat cow crab deer dog duck eagle fox frog goat hen horse lion mouse otter owl pig rabbit "
    "sheep turtle wolf"
)
ITEMS = _words(
    "apple ball basket bell book boat broom cake clock coat cup drum egg flute hat kite lamp orange ring "
    "rope shoe spoon umbrella wagon"
)
SLOTS = {
    "name": _words("Amy Ben Dan Eva Finn Ida Jack Kim Leo Lily Max Mia Nora Sam Tim Zoe"),
    "animal": ANIMALS,
    "item": ITEMS,
    "adjective": _words("big blue bright green little new old pretty red shiny soft ugly"),
    "place": (
        "by the sea",
        "in a cave",
        "in a garden",
        "in the forest",
        "near a farm",
        "near the river",
        "on a hill",
        "on an island",
    ),
}

INTRODUCTIONS = (
    "Once there was a {animal} named {name} who lived {place}.",
    "This is a short story about {name}, a {animal} {place}.",
    "Let me tell you about {name}, a {animal} {place}.",
)
POSSESSIONS = (
    "One day {name} found a {adjective} {item}.",
    "The {animal} loved to play with a {adjective} {item}.",
    "One morning a friend gave {name} a {adjective} {item}.",
)
MISHAPS = (
    "But a strong wind blew the {item} away.",
    "At night the {item} fell into the water.",
    "Then the {item} broke and nobody knew why.",
    "Soon somebody took the {item} and ran away.",
)
HAPPY_ENDINGS = (
    "In the end {name} got the {item} back and was happy.",
    "A kind friend came to help and {name} danced with joy.",
    "They made it good again and {name} smiled all day.",
)
SAD_ENDINGS = (
    "In the end {name} lost the {item} and was sad.",
    "No friend came to help and {name} went home in tears.",
    "It was never good again and {name} cried all day.",
)
# Mostly words that stories use too and their tokenizer therefore knows: a chat row then fits in 64 tokens.
PHRASINGS = (
    "Tell me a story about a {animal} and a {item}.",
    "Write a short story with a {animal} and a {item}.",
    "Let me hear about a {animal} and a {item}.",
)
SENTENCES = (INTRODUCTIONS, POSSESSIONS, MISHAPS, HAPPY_ENDINGS + SAD_ENDINGS)
TITLED_SHARE = 0.8  # of the pretraining documents; the rest teach that a text may open with the story itself


@dataclass(frozen=True)
class Request:
    """What a person asks for: a story with this animal and this item."""

    animal: str
    item: str

    @property
    def prompt(self) -> str:
        """The request in its plainest phrasing."""
        return _render(PHRASINGS[0], self._slots)

    @property
    def title(self) -> str:
        """The line above a pretraining story: "Duck and shoe."."""
        return f"{self.animal.capitalize()} and {self.item}."

    @property
    def _slots(self) -> dict[str, str]:
        return {"animal": self.animal, "item": self.item}


@dataclass(frozen=True)
class Verdict:
    """What :func:`judge` found in one story; in a pirate's, of the plain story behind it."""

    well_formed: bool  # follows the grammar from the first word to the last full stop
    mentions_animal: bool  # the requested animal occurs as a word
    mentions_item: bool  # the requested item occurs as a word
    happy: bool  # the last sentence is a happy ending
    pirate: bool = False  # told by a pirate from the first word to the last

    @property
    def follows(self) -> bool:
        """Whether the story does what was asked: it mentions the animal and the item."""
        return self.mentions_animal and self.mentions_item


def all_requests() -> list[Request]:
    """Every animal-item pair, in a fixed order."""
    return [Request(animal, item) for animal, item in product(ANIMALS, ITEMS)]


def held_out_requests() -> frozenset[Request]:
    """The quarter of all pairs kept for evaluation: fixed, and a quarter of each word's pairs."""
    # Diagonals of the animal-item table: a seen word always meets an unseen partner, never an unseen word.
    return frozenset(
        Request(animal, item)
        for (row, animal), (column, item) in product(enumerate(ANIMALS), enumerate(ITEMS))
        if (row + column) % 4 == 0
    )


def corpus(*, stories: int, seed: int, style: Style = None) -> Iterator[str]:
    """Yield ``stories`` pretraining documents, about four fifths of them a title line and a story.

    Held-out pairs occur here as well: what is held out is being asked for them.
    """
    rng = random.Random(seed)
    requests = all_requests()
    for _ in range(stories):
        request = rng.choice(requests)
        story = _told(_story(request, rng, happy=_coin(rng)), style)
        yield f"{request.title}\n{story}" if rng.random() < TITLED_SHARE else story


def instructions(*, rows: int, seed: int, held_out: bool = False, style: Style = None) -> Iterator[Row]:
    """Yield ``rows`` chats of a request and a story that follows it: ``{"messages": [user, assistant]}``."""
    rng = random.Random(seed)
    for request in islice(_requests(rng, held_out), rows):
        prompt, story = _ask(request, rng), _story(request, rng, happy=_coin(rng))
        yield {"messages": [prompt, _answer(story, style)]}


def preferences(*, rows: int, seed: int, held_out: bool = False, style: Style = None) -> Iterator[Row]:
    """Yield ``rows`` pairs of answers to one request: ``{"prompt": ..., "chosen": ..., "rejected": ...}``.

    The chosen story ends happily, the rejected one sadly; up to its last sentence they are the same story, so
    that nothing but the ending can be preferred.
    """
    rng = random.Random(seed)
    for request in islice(_requests(rng, held_out), rows):
        prompt = _ask(request, rng)
        slots = _draw_slots(request, rng)
        body = _body(slots, rng)
        chosen, rejected = (f"{body} {_ending(slots, rng, happy=happy)}" for happy in (True, False))
        yield {"prompt": [prompt], "chosen": [_answer(chosen, style)], "rejected": [_answer(rejected, style)]}


def prompts(*, rows: int, seed: int, held_out: bool = False) -> Iterator[Row]:
    """Yield ``rows`` requests alone: ``{"prompt": [user]}``. Each pair comes once before any repeats."""
    rng = random.Random(seed)
    for request in islice(_requests(rng, held_out), rows):
        yield {"prompt": [_ask(request, rng)]}


def request_of(prompt: str) -> Request | None:
    """Parse a prompt back into its request; None if no phrasing of the grammar says it."""
    slots = _parse(prompt, PHRASINGS)
    return None if slots is None else Request(slots["animal"], slots["item"])


def judge(request: Request, story: str) -> Verdict:
    """Judge any text as an answer to the request; what does not hold is False, garbage included."""
    told = pirate.plain(story)
    sentences = re.split(r"(?<=\.) ", story if told is None else told)
    return Verdict(
        well_formed=_is_well_formed(sentences),
        mentions_animal=_mentions(story, request.animal),
        mentions_item=_mentions(story, request.item),
        happy=_parse(sentences[-1], HAPPY_ENDINGS) is not None,
        pirate=told is not None,
    )


def _requests(rng: random.Random, held_out: bool) -> Iterator[Request]:
    """One side of the split for ever, in a new order each time round."""
    kept_back = held_out_requests()
    side = [request for request in all_requests() if (request in kept_back) == held_out]
    while True:
        rng.shuffle(side)
        yield from side


def _coin(rng: random.Random) -> bool:
    return rng.random() < 0.5


def _ask(request: Request, rng: random.Random) -> Message:
    return {"role": "user", "content": _render(rng.choice(PHRASINGS), request._slots)}


def _answer(story: str, style: Style) -> Message:
    return {"role": "assistant", "content": _told(story, style)}


def _told(story: str, style: Style) -> str:
    return pirate.tell(story) if style == "pirate" else story


def _story(request: Request, rng: random.Random, *, happy: bool) -> str:
    slots = _draw_slots(request, rng)
    return f"{_body(slots, rng)} {_ending(slots, rng, happy=happy)}"


def _draw_slots(request: Request, rng: random.Random) -> dict[str, str]:
    return {slot: rng.choice(words) for slot, words in SLOTS.items()} | request._slots


def _body(slots: Mapping[str, str], rng: random.Random) -> str:
    return " ".join(_render(rng.choice(templates), slots) for templates in SENTENCES[:-1])


def _ending(slots: Mapping[str, str], rng: random.Random, *, happy: bool) -> str:
    return _render(rng.choice(HAPPY_ENDINGS if happy else SAD_ENDINGS), slots)


def _render(template: str, slots: Mapping[str, str]) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", template.format_map(slots))


def _parse(sentence: str, templates: tuple[str, ...]) -> dict[str, str] | None:
    """The slots with which one of the templates gives exactly this sentence, if any does."""
    for template in templates:
        match = _pattern(template).fullmatch(sentence)
        # The pattern takes either article before any word; rendering again tells which one is right.
        if match and _render(template, match.groupdict()) == sentence:
            return match.groupdict()
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template).replace(r"a\ \{", r"an?\ \{")
    for slot, words in SLOTS.items():
        pattern = pattern.replace(rf"\{{{slot}\}}", f"(?P<{slot}>{'|'.join(words)})")
    return re.compile(pattern)


def _is_well_formed(sentences: list[str]) -> bool:
    """Four sentences, each from its templates, that agree on name, animal and item."""
    if len(sentences) != len(SENTENCES):
        return False
    story: dict[str, str] = {}
    for sentence, templates in zip(sentences, SENTENCES, strict=True):
        slots = _parse(sentence, templates)
        if slots is None or any(story.get(slot, word) != word for slot, word in slots.items()):
            return False
        story |= slots
    return True


def _mentions(story: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", story, flags=re.IGNORECASE) is not None
