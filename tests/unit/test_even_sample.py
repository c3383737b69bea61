"""What a tokenizer learns from when there is too much: bounded, in order, of the end as of the beginning."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from llmpipe.data.even_sample import EvenSample


def sampled(texts: list[str], path: Path, *, max_bytes: int, seed: int = 0) -> EvenSample:
    sample = EvenSample(path, max_bytes=max_bytes, seed=seed)
    for text in texts:
        sample.add(text)
        assert sample.bytes <= max_bytes or sample.documents == 1
    return sample


def test_what_is_not_too_much_is_all_there(tmp_path: Path) -> None:
    texts = ["one", "", "dreißig\n\n", "\U0001f600"]
    sample = sampled(texts, tmp_path / "texts", max_bytes=len("".join(texts).encode()))
    assert list(sample) == list(sample) == texts  # learners may read twice
    assert (sample.documents, sample.bytes, sample.share) == (4, 17, 1.0)


@pytest.mark.parametrize("times", [1.1, 3, 20])
def test_every_text_has_the_same_chance(times: float, tmp_path: Path) -> None:
    """Of the beginning, the middle and the end, and of what alternates, such as a language on every other line."""
    count = 40_000
    texts = [f"{number:06}" for number in range(count)]
    sample = sampled(texts, tmp_path / "texts", max_bytes=round(6 * count / times))
    found = list(map(int, sample))
    assert found == sorted(set(found)) and len(found) == sample.documents
    assert sample.max_bytes / 2 - 6 <= sample.bytes == 6 * sample.documents
    assert sample.documents == pytest.approx(count * sample.share, rel=0.1)
    for share, places in ((1 / 8, Counter(8 * n // count for n in found)), (1 / 2, Counter(n % 2 for n in found))):
        expected = share * sample.documents
        assert len(places) == 1 / share
        assert all(abs(seen - expected) < 5 * expected**0.5 for seen in places.values()), places


def test_a_seed_says_which(tmp_path: Path) -> None:
    texts = [f"{number:06}" for number in range(1000)]
    one, again, other = (list(sampled(texts, tmp_path / "texts", max_bytes=1000, seed=seed)) for seed in (0, 0, 1))
    assert one == again != other


def test_one_text_stays_however_long_it_is(tmp_path: Path) -> None:
    sample = sampled(["a" * 100, "b" * 100, "c" * 100], tmp_path / "texts", max_bytes=10)
    assert len(list(sample)) == sample.documents == 1
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]
