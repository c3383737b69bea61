"""The bias report: how often groups of people are mentioned, and with which words they go together.

Counters are made text by text and added up, before and after the steps; the report compares the two. A word goes
together with a group when it stands in more of the sentences that mention the group than of those that mention
another group of its category: the log-odds ratio with a Dirichlet prior, in standard deviations (Monroe, Colaresi and
Quinn 2008, "Fightin' Words", equations 16, 20 and 22). What a list of words cannot see is in docs/curate-people.md.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from llmpipe.curation.groups import WORD, Groups, default_groups, stop_words

SENTENCE_END = re.compile(r"[.!?]+\s|\n+")
DOCUMENTS = "documents"
PAIRS_MAX = 400_000
"""Pairs of a group and a word that are kept in a sum, about 60 MB of them."""
PRIOR_WORDS = 500
"""Weight of the prior, in words: a rare word has to be seen that much more often to stand out."""
LEAST_Z, LEAST_COUNT, WORDS_SHOWN = 1.96, 3, 8


def count(text: str, groups: Groups | None = None) -> Counter[str]:
    """Count one text. The keys, with numbers that add up over texts:

    `documents`; `category/group`, words that name the group; `category/group/`, documents with one of them;
    `category/group/word`, sentences that mention the group and hold the word, one that names no group.
    """
    groups = groups or default_groups()
    counts, mentions = Counter({DOCUMENTS: 1}), Counter[str]()
    of_word, stop = groups.of_word, stop_words()
    for sentence in SENTENCE_END.split(text.lower()):
        words = WORD.findall(sentence)
        named = [group for word in words if word in of_word for group in of_word[word]]
        if named:
            mentions.update(named)
            others = {word for word in words if len(word) > 2 and word not in stop and word not in of_word}
            counts.update(f"{group}/{word}" for group in set(named) for word in others)
    counts.update(mentions)
    counts.update(f"{group}/" for group in mentions)
    return counts


def add(total: Counter[str], part: Counter[str]) -> None:
    """Add a counter to a sum in bounded memory: above 400,000 pairs of group and word, the rarer half is forgotten.

    What is left of it is a lower bound, and exact for words that stay frequent (Manku and Motwani 2002).
    """
    total.update(part)
    if len(total) > PAIRS_MAX:
        by_number = sorted((key for key in total if _is_pair(key)), key=lambda key: (total[key], key))
        for key in by_number[: len(by_number) // 2]:
            del total[key]


def _is_pair(key: str) -> bool:
    return key.count("/") == 2 and not key.endswith("/")


def report(before: Counter[str], after: Counter[str], groups: Groups | None = None) -> dict[str, Any]:
    """Compare what was counted before and after; groups by category, as JSON takes it.

    Of each group and side: `mentions`, `share` of its category's mentions, `documents` with a mention, `words` that it
    goes together with, the most telling first.
    """
    groups = groups or default_groups()
    sides = {"before": (before, _words_by_group(before)), "after": (after, _words_by_group(after))}
    return {
        "documents": {side: counts[DOCUMENTS] for side, (counts, _) in sides.items()},
        "groups": {
            category: {
                name: {side: _side(counts, words, category, name, names) for side, (counts, words) in sides.items()}
                for name in names
                if before[f"{category}/{name}"] or after[f"{category}/{name}"]
            }
            for category, names in groups.by_category.items()
        },
    }


def _side(
    counts: Counter[str], words: dict[str, Counter[str]], category: str, name: str, names: tuple[str, ...]
) -> dict[str, Any]:
    mentions = sum(counts[f"{category}/{each}"] for each in names)
    own = counts[f"{category}/{name}"]
    told = telling_words(words.get(f"{category}/{name}", Counter()), words.get(category, Counter()))
    return {
        "mentions": own,
        "share": round(own / mentions, 4) if mentions else 0.0,
        "documents": counts[f"{category}/{name}/"],
        "words": [word for word, z in told if z >= LEAST_Z][:WORDS_SHOWN],
    }


def _words_by_group(counts: Counter[str]) -> dict[str, Counter[str]]:
    """Return the words that stand with each `category/group`, and with each `category` as a whole."""
    words: dict[str, Counter[str]] = {}
    for key, number in counts.items():
        if _is_pair(key):
            group, _, word = key.rpartition("/")
            words.setdefault(group, Counter())[word] = number
            words.setdefault(group.partition("/")[0], Counter())[word] += number
    return words


def telling_words(own: Counter[str], all_groups: Counter[str]) -> list[tuple[str, float]]:
    """Return the words of a group and their z, highest first.

    `own` counts the words that stand with the group, `all_groups` those that stand with any group of its category.
    """
    total, others = own.total(), all_groups.total() - own.total()
    if not others or len(all_groups) < 2:  # nobody, or nothing, to compare with
        return []
    found = []
    for word, number in own.items():
        if number >= LEAST_COUNT:
            prior = PRIOR_WORDS * all_groups[word] / (total + others)
            z = _z((number + prior, total + PRIOR_WORDS), (all_groups[word] - number + prior, others + PRIOR_WORDS))
            found.append((word, z))
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def _z(ours: tuple[float, float], theirs: tuple[float, float]) -> float:
    """Return the log-odds ratio of a word in standard deviations; each side is its count and that of all words."""
    ratio = math.log(ours[0] / (ours[1] - ours[0])) - math.log(theirs[0] / (theirs[1] - theirs[0]))
    return ratio / math.sqrt(1 / ours[0] + 1 / theirs[0])
