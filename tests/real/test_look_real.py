"""classify and inspect through the installed command, on labelled tweets and on a real model."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

from tests.real.shared import STORIES, needs_shared, real

LLMPIPE = str(Path(sys.executable).with_name("llmpipe"))


@needs_shared
def test_real_tweets(tmp_path: Path) -> None:
    """Seen by a causal model that knows stories, for a few steps; the columns have names of their own."""
    with real("safety", "davidson_train.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for _, row in zip(range(601), csv.reader(file), strict=False)]
    with (tmp_path / "tweets.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    source = {"path": str(tmp_path / "tweets.csv"), "columns": {"text": "tweet", "label": "class"}}
    stage = {
        "kind": "classify",
        "model": {"path": str(STORIES)},
        "data": source,
        "labels": {"0": "hate", "1": "offensive", "2": "neither"},
        "class_weights": "balanced",
        "context": 64,
        "held_out": {"share": 0.2},
        "trainer": {"max_steps": 12, "learning_rate": 1e-3, "eval_strategy": "no", "save_strategy": "no"},
    }
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: x\nstages:\n  mod: {json.dumps(stage)}\n", encoding="utf-8")
    command = [LLMPIPE, "run", str(recipe), "--run", str(tmp_path / "run"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    (step,) = json.loads(done.stdout)["steps"]
    metrics = step["metrics"]
    assert metrics["rows"] + metrics["held_out_rows"] == 600
    assert list(metrics["by_class"]) == ["hate", "offensive", "neither"]
    assert metrics["held_out_loss"] < metrics["held_out_loss_before"]
    assert "3 classes: hate (" in done.stderr


@needs_shared
def test_a_real_model_is_looked_into(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    command = [LLMPIPE, "inspect", str(STORIES), "Once upon a time, there was a little", "--html", str(page), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "".join(told["sides"]["tokens"]["tokens"][1:]).strip() == told["text"]
    assert told["guesses"][-1]["top"][0][0] == " g"  # of girl
    (attention,) = told["attention"]
    assert [len(attention["weights"]), len(attention["weights"][0])] == [5, 8]
    assert page.stat().st_size > 10_000
