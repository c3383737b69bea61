"""`llmpipe diff`: exactly what was changed, and what that moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmpipe import diff
from llmpipe.artifact import Input
from llmpipe.errors import UsageError
from tests.unit.made import Made, make_run

METRICS = {"held_out_loss": 0.5, "steps": 6, "tokens_per_s": 900, "seconds_sampling": 1.5, "peak_memory_mb": 80}
DATA = Input(field="data", source={"path": "/a/x.txt"}, identity="1", files={"/a/x.txt": "1"})


def two(tmp_path: Path, *after: Made, before: Made | None = None) -> tuple[Path, Path]:
    before = before or Made(
        "base", settings={"context": 64, "trainer": {"logging_steps": 1}}, metrics=METRICS, inputs=[DATA]
    )
    return make_run(tmp_path / "a", [before]), make_run(tmp_path / "b", after)


def like(**changed: Any) -> Made:
    known: dict[str, Any] = {
        "settings": {"context": 64, "trainer": {"logging_steps": 1}},
        "metrics": METRICS,
        "inputs": [DATA],
    }
    return Made("base", **{**known, **changed})


def said(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> list[str]:
    diff.show(*runs, as_json=False)
    return capsys.readouterr().out.splitlines()


MOVED_DATA = DATA.model_copy(update={"source": {"path": "/b/x.txt"}, "files": {"/b/x.txt": "1"}})
NEW_DATA = DATA.model_copy(update={"files": {"/a/x.txt": "2"}, "identity": "2"})


@pytest.mark.parametrize(
    ("after", "lines"),
    [
        pytest.param(like(), ["the settings are the same"], id="nothing"),
        pytest.param(
            like(settings={"context": 96, "trainer": {"logging_steps": 1}}), ["base.context 64 → 96"], id="one-key"
        ),
        pytest.param(
            like(settings={"context": 64, "trainer": {"logging_steps": 9}}),
            ["base.trainer.logging_steps 1 → 9"],
            id="a-key-that-cannot-change-the-output",
        ),
        pytest.param(like(seed=7), ["seed 1 → 7"], id="seed"),
        pytest.param(like(inputs=[MOVED_DATA]), ["the settings are the same"], id="the-same-file-elsewhere"),
        pytest.param(like(inputs=[NEW_DATA]), ["base: x.txt changed"], id="a-file-with-other-content"),
        pytest.param(
            like(metrics={**METRICS, "tokens_per_s": 5, "seconds_sampling": 9.0, "peak_memory_mb": 1}),
            ["the settings are the same"],
            id="speed-time-and-memory",
        ),
    ],
)
def test_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str], after: Made, lines: list[str]) -> None:
    assert said(two(tmp_path, after), capsys) == [*lines, "no metric differs"]


def test_metrics_that_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = two(tmp_path, like(metrics={**METRICS, "held_out_loss": 0.75, "kept": "best"}))
    rows = [line.split() for line in said(runs, capsys)[-2:]]
    assert rows == [["base.held_out_loss", "0.5", "0.75", "+0.25"], ["base.kept", "best"]]


def test_the_seed_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / str(seed), [Made("tok", seed=seed), Made("base", seed=seed)]) for seed in (1, 2)]
    assert said((runs[0], runs[1]), capsys) == ["seed 1 → 2", "no metric differs"]


def test_stages_of_one_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = two(tmp_path, Made("chat"))
    assert said(runs, capsys) == [f"only in {runs[0]}: base", f"only in {runs[1]}: chat", "no metric differs"]


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = two(tmp_path, like(settings={"context": 64}, metrics={**METRICS, "steps": 7}))
    diff.show(*runs, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "before": str(runs[0]),
        "after": str(runs[1]),
        "only_before": [],
        "only_after": [],
        "settings": [
            {
                "stage": "base",
                "key": "trainer.logging_steps",
                "before": 1,
                "after": None,
                "text": "trainer.logging_steps 1 → unset",
            }
        ],
        "metrics": [{"stage": "base", "metric": "steps", "before": 6, "after": 7, "change": 1.0}],
    }


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no run directory: no stage was begun in it"):
        diff.compare(tmp_path, tmp_path)
