"""Recipes and data files that hypothesis thinks of end in llmpipe's own errors, or are read.

A moment of it; `python benchmarks/fuzz.py --minutes 5` goes on for as long as is wanted.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.unit import fuzzed

MOMENT = settings(deadline=10_000, suppress_health_check=list(HealthCheck))


@settings(MOMENT, max_examples=40)
@given(text=fuzzed.recipe_texts())
def test_recipes(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    fuzzed.read_recipe(text, tmp_path_factory.getbasetemp())


@settings(MOMENT, max_examples=80)
@given(file=fuzzed.files())
def test_files(file: tuple[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    fuzzed.read_file(*file, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("suffix", sorted(fuzzed.whole()))
def test_what_is_broken_was_whole(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the fuzzing would break what is broken already."""
    found: list[int] = []
    monkeypatch.setattr(fuzzed, "TABLES", [lambda rows: found.append(len(list(rows))) or iter(())])
    fuzzed.read_file(suffix, fuzzed.whole()[suffix], tmp_path)
    assert found[0] > 0
