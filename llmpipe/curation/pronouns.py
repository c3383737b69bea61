"""She for he and back. `her` is him or his, and `his` is her or hers; what follows tells which.

>>> swapped("He gave her his coat.", names=False)
'She gave him her coat.'
"""

from __future__ import annotations

import re
from functools import cache

from llmpipe.curation.groups import pairs

WORD = re.compile(r"[^\W\d_]+")
NEXT = re.compile(r"[ \t\n-]*(?:[\"'“‘(] ?)?([^\W_]+(?:['’][^\W\d_]+)?)")
LET = re.compile(r"\b(?:let|lets|bid)[ \t]+$", re.IGNORECASE)
BEFORE = re.compile(r"(\w[\w'’]*)[ \t]+$")

# After "him" and "hers", and hardly ever the first word of what is hers.
NO_NOUN = frozenset(
    """
    a about above across after again against ago all alone along already also although am among an and another any
    anyone anything apart are aren't around as aside at away back be because been before behind being below beside
    besides between beyond both but by came can cannot could couldn't did didn't do does doesn't don't down during
    each either enough even ever every everything except for forward from further go goes going had has have he he's
    hence her here hers herself him himself his hither home how however i i'd i'll i'm i've if in instead into is
    isn't it it's its itself just know later like may maybe me might mine more much must my myself near never no
    none nor not nothing now of off on once one onto or otherwise our ours out outside over perhaps please quickly
    quite rather really right said say says shall she she's should since so some someone something somewhat soon
    still such than that that's the their theirs them then thence there these they they're this those though through
    thus till to today together tomorrow tonight too toward towards twice under unless until up upon us very was
    wasn't we well were what what's whatever when whenever where wherever whether which while who who's whom whose
    why will with within without won't would wouldn't yesterday yet you you're your yours
    """.split()
)
ADJECTIVES_IN_LY = frozenset(
    "daily deadly early elderly family friendly holy homely only likely lively lonely lovely monthly only silly ugly"
    " unlikely weekly worldly yearly belly bully ally assembly fly jelly lily reply supply july italy".split()
)


def swapped(text: str, *, names: bool) -> str:
    """Return the text with men and women exchanged, capitals kept; first names too where wanted.

    A name behind another word with a capital is left alone: it is a surname, or the name is of somebody known.
    """
    partners = _words()
    people = _names() if names else {}
    parts, end = [], 0
    for match in WORD.finditer(text):
        word = match[0]
        low = word.lower()
        if word in people and not _is_surname(text, match.start()):
            other = people[word]
        elif low == "her":
            other = _as_written(word, "his" if owns_what_follows(text, match) else "him")
        elif low == "his":
            other = _as_written(word, "her" if owns_what_follows(text, match) else "hers")
        elif low in partners:
            other = _as_written(word, partners[low])
        else:
            continue
        parts += [text[end : match.start()], other]
        end = match.end()
    return "".join([*parts, text[end:]])


def owns_what_follows(text: str, pronoun: re.Match[str]) -> bool:
    """Tell `her coat` from `saw her and`, and from `let her go`: can the next word begin what is hers?"""
    following = NEXT.match(text, pronoun.end())
    if not following or LET.search(text, max(0, pronoun.start() - 8), pronoun.start()):
        return False
    word = following[1].lower()
    return word not in NO_NOUN and (word in ADJECTIVES_IN_LY or not word.endswith("ly"))


def _is_surname(text: str, start: int) -> bool:
    before = BEFORE.search(text[max(0, start - 24) : start])
    return before is not None and before[1][0].isupper() and before[1].lower() not in NO_NOUN


def _as_written(word: str, other: str) -> str:
    if len(word) > 1 and word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other


@cache
def _words() -> dict[str, str]:
    both = {"he": "she", "she": "he", "him": "her", "hers": "his"}
    for man, woman in pairs("words"):
        both |= {man: woman, woman: man}
    return both | {"mrs": "mr"}


@cache
def _names() -> dict[str, str]:
    both: dict[str, str] = {}
    for man, woman in pairs("names"):
        both |= {man: woman, woman: man, man.upper(): woman.upper(), woman.upper(): man.upper()}
    return both
