"""The stages themselves: stopped and resumed they end with the weights, to the bit, that they have without a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmpipe.errors import StoppedError
from tests.stages.tiny import context_for, run_stage, same, stop_after

STEPS = 8
TRAINER = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": STEPS, "logging_steps": 1}


@pytest.fixture
def settings(make_model: Any, tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    """What pretrain and sft share: a model with dropout to go on from, and the built-in data."""
    make_model(context=192).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    return {"model": {"path": str(tmp_path / "m")}, "context": 192, "dropout": 0.1, "trainer": TRAINER}


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_a_stage_resumes_to_the_bit(kind, settings, tmp_path) -> None:
    pirates = {"builtin": "storyworld", "rows": 40, "style": "pirate", "weight": 1.5}
    settings |= {"data": [{"builtin": "storyworld", "rows": 60}, pirates]}
    whole = run_stage(kind, settings, context_for(tmp_path / "whole"))
    assert not same(tmp_path / "whole" / "x" / "model", tmp_path / "m")
    lines = logged(tmp_path / "whole")
    assert len(lines) == len(set(lines))
    shared = [key for key in whole.metrics if key not in ("tokens_per_s",)]
    for stop_at, how, code in ((3, "interrupt", 130), (STEPS, "terminate", 75)):
        folder = tmp_path / how
        with pytest.raises(StoppedError) as stopped:
            run_stage(kind, settings, context_for(folder, stop=stop_after(stop_at, how)))
        assert (str(stopped.value), stopped.value.code) == (f"stopped after step {stop_at}, which is saved", code)
        ctx = context_for(folder)
        resumed = run_stage(kind, settings, ctx)

        assert {"event": "say", "text": f"resuming from step {stop_at}"} in ctx.events
        assert same(tmp_path / "whole" / "x" / "model", folder / "x" / "model")
        assert {key: resumed.metrics[key] for key in shared} == {key: whole.metrics[key] for key in shared}
        assert logged(folder) == lines


def test_what_was_stopped_early_is_not_trained_on(settings, tmp_path, monkeypatch) -> None:
    """Killed between the last checkpoint and the manifest, the stage only has its output to write."""
    settings |= {"data": {"builtin": "storyworld", "rows": 120}, "early_stopping": 2, "keep": "last"}
    losses = iter([5.0, 4.0, 6.0, 7.0, 7.0, 7.0])
    monkeypatch.setattr("llmpipe.training.flow.Measured.held_out_loss", lambda self: next(losses))
    first = run_stage("pretrain", settings, context_for(tmp_path))
    (tmp_path / "x" / "model").rename(tmp_path / "first")
    again = run_stage("pretrain", settings, context_for(tmp_path))
    assert first.metrics["steps"] == again.metrics["steps"] == 3
    assert same(tmp_path / "first", tmp_path / "x" / "model")


def logged(folder: Path) -> list[tuple[int, bool, float]]:
    """Return (step, is held-out, loss) of each line of metrics.jsonl."""
    rows = [json.loads(line) for line in (folder / "x" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["step"], "held_out_loss" in row, row.get("held_out_loss", row.get("loss"))) for row in rows]
