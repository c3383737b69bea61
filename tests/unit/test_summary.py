"""What a stage changed: by its own metrics, and by what an eval stage measured of it and of what it began from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmpipe import stages, summary
from llmpipe.artifact import Manifest

EARLY, LATE = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"


def done(name: str, kind: str, *inputs: tuple[str, str], started: str = EARLY, **metrics: Any) -> Manifest:
    """Make a finished stage that read other stages, each by the field that names it."""
    sources = [{"field": field, "source": {"stage": stage}, "identity": ""} for field, stage in inputs]
    record = {"name": name, "kind": kind, "stage_version": 1, "fingerprint": "", "seed": 1, "settings": {}}
    rest = {"outputs": {}, "gates": [], "versions": {}, "device": "", "seconds": 1.0}
    return Manifest(**record, **rest, inputs=sources, metrics=metrics, started=started)  # type: ignore[arg-type]


PIRATE = done("pirate", "lora", ("model", "chat"), held_out_loss_before=6.4, held_out_loss=0.23, trained_share=0.02134)
MEASURED = {
    "chat.tokens": 100,
    "chat.follows_share": 0.99,
    "chat.happy_share": 0.5,
    "chat.pirate_share": 0.0,
    "pirate.tokens": 9000,
    "pirate.follows_share": 0.97,
    "pirate.happy_share": 0.1,
    "pirate.pirate_share": 0.96,
}
SCORES = done("scores", "eval", ("models", "chat"), ("models", "pirate"), started=LATE, **MEASURED)
LOSS = ("", "nats per token, held-out rows", "6.4", "0.23", "")


def test_the_share_that_moved_most_comes_first() -> None:
    assert summary.changes("pirate", PIRATE, [PIRATE, SCORES]) == [
        ("pirate", "talks like a pirate", "0%", "96%", "2.1% trained"),
        LOSS,
    ]


def test_who_has_a_language_model_is_told_how_to_talk_to_it(tmp_path: Path) -> None:
    said = [label for label, _ in summary.next_commands(tmp_path, {"pirate": PIRATE, "scores": SCORES})]
    assert said == ["model", "talk", "look", "again"]
    assert ("talk", f"llmpipe chat {tmp_path}") in summary.next_commands(tmp_path, {"pirate": PIRATE})
    classes = done("classes", "classify")
    assert [label for label, _ in summary.next_commands(tmp_path, {"classes": classes})] == ["model", "look", "again"]


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([], id="nothing-measured"),
        pytest.param([SCORES.model_copy(update={"started": "2025-12-31"})], id="an-older-model-was-measured"),
        pytest.param([SCORES.model_copy(update={"inputs": SCORES.inputs[:1]})], id="another-model-was-measured"),
        pytest.param([SCORES.model_copy(update={"kind": "reward"})], id="no-eval-stage"),
        pytest.param(
            [SCORES.model_copy(update={"metrics": {k: v for k, v in MEASURED.items() if k[:4] != "chat"}})],
            id="its-beginning-was-not-measured",
        ),
        pytest.param(
            [SCORES.model_copy(update={"metrics": {"chat.happy_share": 0.1, "pirate.happy_share": 0.1}})],
            id="nothing-moved",
        ),
    ],
)
def test_else_its_own_metrics_are_all(others: list[Manifest]) -> None:
    assert summary.changes("pirate", PIRATE, others) == [("pirate", *LOSS[1:4], "2.1% trained")]


def test_a_fall_counts_like_a_rise() -> None:
    fallen = SCORES.model_copy(update={"metrics": MEASURED | {"pirate.follows_share": 0.01}})
    (first, *_) = summary.changes("pirate", PIRATE, [fallen])
    assert first[1:4] == ("does what it is asked, unseen pairs", "99%", "1%")


def test_every_stage_that_makes_a_language_model_is_known() -> None:
    others = {"curate", "tokenizer", "classify", "reward", "eval"}
    assert set(summary.MAKE_MODELS) == stages.STAGES.keys() - others
