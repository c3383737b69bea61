"""What is written about the gates: a sentence for each, and the page that is made from them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from llmpipe.artifact import Manifest
from llmpipe.gates import REASONS
from llmpipe.stages import STAGES

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_the_one_that_the_gates_make() -> None:
    made = runpy.run_path(str(DOCS / "make_gates.py"))["page"]()
    assert (DOCS / "gates.md").read_text(encoding="utf-8") == made, "python docs/make_gates.py"


@pytest.mark.parametrize("name", REASONS)
def test_a_gate_says_why_it_is_there_in_one_sentence_and_what_to_do(name: str) -> None:
    reason = REASONS[name]
    for text in (reason.why, reason.remedy):
        assert text and not text.endswith(".") and ". " not in text
        assert "|" not in text  # which would end a cell of the page
    assert reason.stages and {*reason.stages} <= {*STAGES}
    assert all(thread.count("#") == thread.count("/") == 1 for thread in reason.threads)


def test_every_stage_that_writes_weights_is_checked() -> None:
    checked = {stage for reason in REASONS.values() for stage in reason.stages}
    assert {*STAGES} - checked == {"curate", "eval"}


def test_a_manifest_of_before_gates_measured_anything_can_be_read() -> None:
    rest = {"outputs": {}, "metrics": {}, "versions": {}, "device": "cpu", "started": "", "seconds": 1.0, "inputs": []}
    record = {"name": "x", "kind": "sft", "stage_version": 1, "fingerprint": "f", "seed": 1, "settings": {}}
    old = {"name": "pad-is-not-end", "passed": True, "why": "padding would stop every answer"}
    read = Manifest.model_validate({**rest, **record, "gates": [old]})
    assert read.gates[0].measured is None
