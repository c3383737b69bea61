"""`trainer.report_to`: the curves arrive, under a name that says whose they are."""

from pathlib import Path

import pytest

from llmpipe.context import REHEARSAL
from tests.stages.tiny import context_for, run_stage

TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "report_to": "tensorboard"}
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


@pytest.fixture
def settings(make_model, tokenizer, tmp_path, monkeypatch):
    make_model(context=192).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # so that what the stage sets is taken back after the test
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
    data = {"builtin": "storyworld", "rows": 20}
    return {"model": {"path": str(tmp_path / "m")}, "context": 192, "data": data, "trainer": TRAINER}


def test_tensorboard_gets_the_curves_of_a_stage(settings, tmp_path) -> None:
    run_stage("pretrain", settings, context_for(tmp_path))
    events = accumulator.EventAccumulator(str(tmp_path / "x" / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2]
    assert not list((tmp_path / "x" / "checkpoints").rglob("*tfevents*"))


def test_a_rehearsal_reports_to_nobody(settings, tmp_path) -> None:
    (tmp_path / REHEARSAL).write_text("{}")
    run_stage("pretrain", settings, context_for(tmp_path))
    assert not list(Path(tmp_path).rglob("*tfevents*"))
