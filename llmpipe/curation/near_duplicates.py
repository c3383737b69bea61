"""near_duplicates: of texts that share most of their runs of words, the first stays.

    - {step: near_duplicates, threshold: 0.8, words: 5}

MinHash signatures (Broder 1997), made by rensa, are cut into bands; texts with an equal band are compared for real, by
the Jaccard similarity of their runs of words, so that nothing goes that is not at least as similar as `threshold`. A
text goes if an earlier one that stays is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import xxhash
from pydantic import Field

from llmpipe.curation import Verdict
from llmpipe.curation.crew import Crew
from llmpipe.curation.spool import BUCKETS, Bits, Buckets, Shelf, Spool
from llmpipe.curation.tally import EXAMPLES, excerpt
from llmpipe.curation.words import runs, words
from llmpipe.settings import Strict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PERMUTATIONS = 128
RECALL = 0.99
"""Of the pairs that are just as similar as the threshold, so many have to share a band."""
PARTNERS = 16
"""Texts that share a band are compared with so many first ones: thousands of copies must not make millions of pairs."""
PAIRS_IN_PART = 256


class Settings(Strict):
    """What `step: near_duplicates` understands."""

    step: Literal["near_duplicates"] = Field("near_duplicates", description="which step this is")
    threshold: float = Field(0.8, ge=0.5, le=1, description="Jaccard similarity from which two texts are the same")
    words: int = Field(5, ge=1, description="words in a run; fewer see more alike")


def bands_of(threshold: float) -> tuple[int, int]:
    """Return the number of bands and the values in one, the most that still find pairs at the threshold.

    A pair of similarity s shares one of b bands of r values with probability 1 - (1 - s^r)^b.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - min(threshold, 0.999) ** rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def keys(settings: Settings) -> Callable[[str], list[bytes]]:
    """Return what hashes the bands of a text's signature, 8 bytes each."""
    import numpy as np
    from rensa import RMinHash

    bands, rows = bands_of(settings.threshold)

    def signed(text: str) -> list[bytes]:
        signature = RMinHash(num_perm=bands * rows, seed=1)
        signature.update(runs(words(text), settings.words))
        values = np.array(signature.digest(), dtype="<u4").tobytes()
        parts = (values[start : start + 4 * rows] for start in range(0, len(values), 4 * rows))
        return [b"".join(xxhash.xxh3_64_digest(part, seed=band) for band, part in enumerate(parts))]

    return signed


def build(settings: Settings) -> Callable[[str, tuple[int, ...]], Verdict]:
    """Return what drops a text that repeats an earlier one."""
    del settings
    return lambda text, repeated: Verdict((), ("near duplicate",)) if repeated else Verdict((text,))


@dataclass(frozen=True)
class Pairs:
    """Pairs of numbers, later and earlier, of texts in a spool, to be compared."""

    spool: Path
    settings: Settings
    pairs: list[tuple[int, int]]


def alike(part: Pairs) -> list[tuple[int, int, float]]:
    """Return the pairs that are similar enough, each with its Jaccard similarity."""
    import numpy as np

    shelf = Shelf(part.spool)

    @lru_cache(maxsize=16)
    def shingles(number: int) -> NDArray[np.uint64]:
        return _hashed(runs(words(shelf[number].text), part.settings.words))

    found = []
    for later, earlier in part.pairs:
        one, other = shingles(later), shingles(earlier)
        shared = len(np.intersect1d(one, other, assume_unique=True))
        if (jaccard := shared / (len(one) + len(other) - shared)) >= part.settings.threshold:
            found.append((later, earlier, jaccard))
    shelf.close()
    return found


def _hashed(found: list[str]) -> NDArray[np.uint64]:
    """Return the hashes of runs of words, each once: a tenth of the memory that the runs would take."""
    import numpy as np

    hashes = (xxhash.xxh3_64_intdigest(run.encode("utf-8", "surrogatepass")) for run in found)
    return np.unique(np.fromiter(hashes, dtype="<u8", count=len(found)))


class Comparison:
    """Bands of all texts with their numbers, sorted on disk; then pairs of texts that share one."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self._bands = bands_of(settings.threshold)[0]
        self._buckets = Buckets(folder / "bands", columns=2)

    def add(self, keys: bytes, first: int) -> None:
        """Take the bands of further texts, of which `first` is the number of the first."""
        import numpy as np

        bands = np.frombuffer(keys, dtype="<u8")
        numbers = np.repeat(np.arange(first, first + len(bands) // self._bands, dtype="<u8"), self._bands)
        self._buckets.add(np.column_stack([bands, numbers]), bands >> np.uint64(56))

    def repeats(self, spool: Spool, crew: Crew) -> Bits:
        """Return the texts that are similar to an earlier one that stays."""
        pairs = Buckets(self.folder / "pairs", columns=2)
        for rows in self._buckets.sorted():
            for found in _candidates(rows):
                pairs.add(found, found[:, 0] * BUCKETS // max(1, spool.documents))
        gone = Bits(spool.documents)
        shown: list[tuple[int, int, float]] = []
        for alike_pairs in crew.each(alike, _parts(pairs.sorted(), spool.path, self.settings)):
            for later, earlier, jaccard in alike_pairs:
                if later not in gone and earlier not in gone:
                    gone.add(later)
                    shown += [(later, earlier, jaccard)] if len(shown) < EXAMPLES else []
        shelf = Shelf(spool.path)
        self.examples = {"near duplicate": [_example(shelf, *found) for found in shown]}
        shelf.close()
        return gone


def _candidates(rows: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    """Yield pairs `(pairs, 2)` of later and earlier numbers, from rows `(rows, 2)` of bands and numbers, sorted."""
    import numpy as np

    new = np.concatenate([[True], rows[1:, 0] != rows[:-1, 0]])
    place = np.arange(len(rows))
    start = np.maximum.accumulate(np.where(new, place, 0))
    for partner in range(PARTNERS):
        later = np.flatnonzero(place - start > partner)
        if not len(later):
            return
        yield np.column_stack([rows[later, 1], rows[start[later] + partner, 1]])


def _parts(sorted_rows: Iterable[NDArray[np.uint64]], spool: Path, settings: Settings) -> Iterator[Pairs]:
    """Cut pairs into parts for the processes, each pair once."""
    import numpy as np

    for rows in sorted_rows:
        new = np.concatenate([[True], np.any(rows[1:] != rows[:-1], axis=1)])
        kept = rows[new]
        for start in range(0, len(kept), PAIRS_IN_PART):
            pairs = [(later, earlier) for later, earlier in kept[start : start + PAIRS_IN_PART].tolist()]
            yield Pairs(spool, settings, pairs)


def _example(shelf: Shelf, later: int, earlier: int, jaccard: float) -> dict[str, Any]:
    one, other = shelf[later], shelf[earlier]
    likeness = {"jaccard": round(jaccard, 3), "like": other.where, "kept": excerpt(other.text)}
    return {"where": one.where, "dropped": excerpt(one.text), **likeness}
