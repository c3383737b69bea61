"""Curation on real text: edits planted into web pages and Wikipedia, the Debian FAQ in eight languages."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

from llmpipe.curation import Document
from llmpipe.curation.crew import Crew
from llmpipe.curation.engine import Account, Engine
from llmpipe.curation.language import identifier
from llmpipe.curation.near_duplicates import Settings
from llmpipe.curation.words import runs, words
from tests.real.shared import real

EDITED_SHARES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3)
BUCKETS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.82, 0.85, 0.9, 0.95, 1.01)
NATIVE = {"ja": "[\u3040-\u30ff]", "ru": "[\u0400-\u04ff]", "zh": "[\u4e00-\u9fff]"}


def originals() -> list[str]:
    """Web pages, and paragraphs of Wikipedia of 60 words or more, no two of them alike."""
    pages = [json.loads(line)["text"] for line in real("pretrain", "c4_demo.jsonl").read_text("utf-8").splitlines()]
    wiki = real("pretrain", "wikitext2.valid.txt").read_text("utf-8").splitlines()
    return pages + [line for line in wiki if len(line.split()) >= 60][:300]


def edited(text: str, share: float, rng: random.Random, vocabulary: list[str]) -> str:
    """Replace, take out or put in a share of the words."""
    out = []
    for word in text.split():
        kind = rng.choice(("replace", "drop", "insert")) if rng.random() < share else "keep"
        out += {"keep": [word], "replace": [rng.choice(vocabulary)], "drop": []}.get(
            kind, [word, rng.choice(vocabulary)]
        )
    return " ".join(out)


def found_of_planted(folder: Path) -> tuple[Counter[float], Counter[float], int]:
    """Plant two edited copies of each text; returns those found and all, by bucket of Jaccard similarity, and drops."""
    rng, first = random.Random(1), originals()
    vocabulary = sorted({word for text in first for word in text.split()})
    copies = [(n, edited(text, rng.choice(EDITED_SHARES), rng, vocabulary)) for n, text in enumerate(first)]
    copies += [(n, edited(text, rng.choice(EDITED_SHARES), rng, vocabulary)) for n, text in enumerate(first)]
    documents = [Document(text, f"o{number}") for number, text in enumerate(first)]
    documents += [Document(text, f"c{place}") for place, (_, text) in enumerate(copies)]
    with Crew(1) as crew:
        run = Engine(folder, crew, lambda **_: None).run(documents, [Settings(step="near_duplicates")], Account())
        left = {one.where for one in run}
    shingles = [frozenset(runs(words(text), 5)) for text in first]
    total, found = Counter[float](), Counter[float]()
    for place, (number, text) in enumerate(copies):
        own = frozenset(runs(words(text), 5))
        jaccard = len(own & shingles[number]) / len(own | shingles[number])
        bucket = max(edge for edge in BUCKETS if edge <= jaccard)
        total[bucket] += 1
        found[bucket] += f"c{place}" not in left
    return found, total, len(documents) - len(left)


def test_near_duplicates_are_found_by_their_jaccard_similarity(tmp_path: Path) -> None:
    found, total, dropped = found_of_planted(tmp_path)
    alike = [bucket for bucket in total if bucket >= 0.8]
    assert sum(total[bucket] for bucket in alike) > 400
    for bucket in alike:
        assert found[bucket] / total[bucket] >= 0.95, bucket
    assert sum(found[bucket] for bucket in alike) / dropped >= 0.98


def test_languages_are_told_by_the_line() -> None:
    told, right, lines = identifier(), Counter[str](), Counter[str]()
    folder = real("pretrain", "multilingual")
    english = set(map(str.strip, (folder / "debian-faq.en.txt").read_text("utf-8").splitlines()))
    for path in sorted(folder.glob("*.txt")):
        language = path.name.split(".")[1][:2]
        for line in map(str.strip, path.read_text("utf-8").splitlines()):
            untranslated = language != "en" and line in english
            if len(line) > 40 and not untranslated and re.search(NATIVE.get(language, ""), line):
                lines[language] += 1
                right[language] += told(line)[0] == language
    assert len(lines) == 8
    assert right.total() / lines.total() >= 0.97
