"""The rendered pipeline run by datatrove's local executor, beside llmpipe's own engine on the same pages.

Runs where datatrove can be imported, or where LLMPIPE_DATATROVE_PYTHON names a Python that can import it and llmpipe.
"""

from __future__ import annotations

import json
import os
import random
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmpipe.curation.datatrove import jobs
from tests.unit.test_curate_stage import TEXTS, context, run, written

PYTHON = os.environ.get("LLMPIPE_DATATROVE_PYTHON") or (sys.executable if find_spec("datatrove") else None)
STEPS = ["repair", "exact_duplicates", {"step": "quality", "c4": {"min_sentences": 3}}, "near_duplicates", "pii"]


@pytest.mark.skipif(PYTHON is None, reason="datatrove is not installed, and LLMPIPE_DATATROVE_PYTHON names no Python")
def test_both_engines_leave_the_same_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PYTHON is not None
    monkeypatch.setattr(jobs, "PYTHON", PYTHON)
    pages = ["\n".join(TEXTS[start : start + 3]) for start in range(0, 120, 3)]
    pages += [
        pages[0],
        pages[1].replace(" ", "  "),
        f"{pages[2]} The end was near.",
        "Too short.",
        "Mail jo@x.org. " * 20,
    ]
    random.Random(0).shuffle(pages)
    left = {}
    for engine in (None, {"name": "datatrove", "tasks": 2}):
        ctx = context(tmp_path / str(engine is None))
        found = run(ctx, pages, steps=STEPS, **({"engine": engine} if engine else {}))
        report = json.loads((ctx.dir / "curation.json").read_text("utf-8"))["steps"]
        counts = [(step["step"], step["documents_in"], step["dropped"]) for step in report]
        left[engine is None] = sorted(" ".join(text.split()) for text in written(ctx, "*.jsonl")), counts, found.metrics
    assert left[True] == left[False]
    assert [count for _, _, count in left[True][1]][1] == 2
