"""How a tokenizer cuts its text: bytes per token by language, pieces that nothing uses, others beside it, a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any
from xml.sax.saxutils import escape

from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.data import Row
from llmpipe.training.packing import whole

GROUP_CHARACTERS = 200_000
"""Of each file, or language: enough to tell bytes per token to three figures."""
TOTAL_CHARACTERS = 4_000_000
MOST_GROUPS = 20
PIECES = 40
SHOWN_UNUSED = 20
VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})


@dataclass
class Samples:
    """The beginning of each file's or language's text, kept while a stage reads it all; memory stays bounded."""

    groups: dict[str, list[str]] = field(default_factory=dict)
    kept: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row, text: str) -> None:
        """Keep a text, or as much of it as there is room for."""
        group = group_of(row)
        room = min(GROUP_CHARACTERS - self.kept[group], TOTAL_CHARACTERS - self.kept.total())
        if room > 0:
            self.groups.setdefault(group, []).append(text[:room])
            self.kept[group] += len(self.groups[group][-1])

    def by_name(self) -> dict[str, list[str]]:
        """Return the texts by group; when there are many files, by the folder that they lie in."""
        if len(self.groups) <= MOST_GROUPS:
            return self.groups
        folders: dict[str, list[str]] = {}
        for name, texts in self.groups.items():
            folders.setdefault(str(PurePath(name).parent), []).extend(texts)
        return folders


def group_of(row: Row) -> str:
    """Return the language that a row says it is in, else the file that it comes from."""
    language = row.value.get("language", row.value.get("lang"))
    return language if isinstance(language, str) and language else row.where.rpartition(":")[0]


def report(tokenizer: Tokenizer, samples: Samples, others: Mapping[str, Tokenizer]) -> dict[str, Any]:
    """Measure a tokenizer on samples of its text, and others on the same samples.

    Sizes are in bytes of UTF-8. A piece is unused when it is in no sample and is no special token; a byte-level
    vocabulary needs some of those all the same, to build the others from.
    """
    texts = samples.by_name()
    used: Counter[int] = Counter()
    own = _measured(tokenizer, texts, used)
    compared = {name: _measured(other, texts, Counter()) for name, other in others.items()}
    vocabulary = tokenizer.get_vocab()
    for name, other in others.items():
        compared[name]["shared_pieces"] = len(plain(vocabulary) & plain(other.get_vocab()))
    spare = sorted(set(vocabulary.values()) - used.keys() - set(tokenizer.all_special_ids))
    return {
        **own,
        "unused_tokens": len(spare),
        "unused_share": round(len(spare) / max(1, len(vocabulary)), 4),
        "unused": [shown(tokenizer, token) for token in spare[-SHOWN_UNUSED:]],
        "pieces": [{"piece": shown(tokenizer, token), "count": count} for token, count in used.most_common(PIECES)],
        "compared": compared,
    }


def _measured(tokenizer: Tokenizer, texts: Mapping[str, list[str]], used: Counter[int]) -> dict[str, Any]:
    """Count bytes and tokens by group; the tokens go to `used`."""
    groups: dict[str, dict[str, Any]] = {}
    unknown, unknowns = tokenizer.unk_token_id, 0
    backend = whole(tokenizer)
    for name, parts in sorted(texts.items()):
        size = sum(len(part.encode("utf-8")) for part in parts)
        ids = Counter(
            token for encoding in backend.encode_batch_fast(parts, add_special_tokens=False) for token in encoding.ids
        )
        tokens = ids.total()
        used.update(ids)
        unknowns += 0 if unknown is None else ids[unknown]
        groups[name] = {"bytes": size, "tokens": tokens, "bytes_per_token": round(size / max(1, tokens), 3)}
    size, tokens = (sum(group[key] for group in groups.values()) for key in ("bytes", "tokens"))
    return {
        "vocab_size": len(tokenizer),
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": round(size / max(1, tokens), 3),
        "unknown_share": round(unknowns / max(1, tokens), 5),
        "groups": groups,
    }


def plain(vocabulary: Iterable[str]) -> set[str]:
    """Return pieces as they are whatever marks their algorithm sets: Ġ or ▁ before a word, ## within one."""
    return {piece.removeprefix("##").lstrip("Ġ▁") for piece in vocabulary}


def shown(tokenizer: Tokenizer, token: int) -> str:
    """Write a piece such that its spaces are seen; a part of a letter is the bytes that it stands for."""
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return (text if text and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))).translate(VISIBLE)


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Say the report in a few lines."""
    yield (
        f"{found['bytes_per_token']:.2f} bytes per token; {found['unused_tokens']:,} of {found['vocab_size']:,} tokens "
        f"({found['unused_share']:.0%}) are not used in {found['bytes']:,} bytes of its text"
    )
    if len(found["groups"]) > 1:
        parts = (f"{PurePath(name).name} {group['bytes_per_token']:.2f}" for name, group in found["groups"].items())
        yield f"bytes per token: {', '.join(parts)}"
    for name, other in found["compared"].items():
        unknown = f", {other['unknown_share']:.1%} unknown" if other["unknown_share"] else ""
        yield f"{name} has {other['vocab_size']:,} tokens: {other['bytes_per_token']:.2f} bytes per token{unknown}"


def picture(found: Mapping[str, Any]) -> str:
    """Draw the most frequent pieces as an SVG, a bar each."""
    pieces, row, left, width = found["pieces"], 18, 130, 420
    most = max((piece["count"] for piece in pieces), default=1)
    height = row * len(pieces) + 44
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" font-size="12" '
        'font-family="monospace">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="10" y="20" font-weight="bold">{len(pieces)} most frequent of {found["tokens"]:,} tokens</text>',
    ]
    for number, piece in enumerate(pieces):
        y, length = 34 + row * number, max(1, round(width * piece["count"] / most))
        name = escape("".join(letter if letter.isprintable() else "�" for letter in piece["piece"][:14]))
        drawn += [
            f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{name}</text>',
            f'<rect x="{left}" y="{y + 2}" width="{length}" height="{row - 5}" fill="#4878a8"/>',
            f'<text x="{left + length + 6}" y="{y + 12}" fill="#555">{piece["count"] / found["tokens"]:.2%}</text>',
        ]
    return "\n".join([*drawn, "</svg>"]) + "\n"
