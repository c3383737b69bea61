"""The shakespeare recipe in miniature, and continued pretraining of a real model, on real text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.real.shared import STORIES, needs_shared, real

LLMPIPE = str(Path(sys.executable).with_name("llmpipe"))


@needs_shared
def test_shakespeare_by_the_character(tmp_path: Path) -> None:
    text = json.dumps(str(real("pretrain", "tinyshakespeare.txt")))
    command = [LLMPIPE, "run", "shakespeare-cpu", "--run", str(tmp_path), "--json"]
    for setting in (
        f"tok.data.path={text}",
        f"base.data.path={text}",
        "base.trainer.max_steps=150",
        "scores.max_tokens=20k",
    ):
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    steps = {step["name"]: step["metrics"] for step in json.loads(done.stdout)["steps"]}
    assert steps["tok"]["vocab_size"] == 65 + 8  # the text's letters, and the special tokens with the unknown one
    assert steps["base"]["held_out_tokens"] == 111_539 + 2  # the last tenth, its begin and end
    assert steps["scores"]["base.nats_per_character"] < 2.6  # single letters by their frequency alone cost 3.3


@needs_shared
def test_continue_from_a_real_model(tmp_path: Path) -> None:
    text = real("pretrain", "wikitext2.valid.txt")
    command = [
        LLMPIPE,
        "pretrain",
        "--run",
        str(tmp_path / "run"),
        "--model",
        str(STORIES),
        "--data",
        str(text),
        "--json",
    ]
    for setting in ("context=128", "batch_tokens=4096", "trainer.max_steps=30", "trainer.learning_rate=1e-3"):
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    (step,) = json.loads(done.stdout)["steps"]
    assert step["metrics"]["bits_per_byte"] < step["metrics"]["bits_per_byte_before"] - 0.3
