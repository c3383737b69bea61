"""reward through the installed command, on real preferences, from a real model of 512 tokens' context."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.shared import STORIES, needs_shared, real

LLMPIPE = str(Path(sys.executable).with_name("llmpipe"))

# file -> its pairs, those that do not fit into 512 tokens, steps to train, whether the answers follow as plain text
FILES = {
    "dpo_en_demo.json": (300, 278, 3, False),
    "hh_rlhf_harmless_test.jsonl.gz": (2312, 699, 8, True),
}


@needs_shared
@pytest.mark.parametrize("name", FILES)
def test_real_preferences(tmp_path: Path, name: str) -> None:
    pairs, too_long, steps, plain = FILES[name]
    run = tmp_path / "run"
    command = [LLMPIPE, "reward", "--run", str(run), "--model", str(STORIES), "--data", str(real("preference", name))]
    for setting in (
        f"trainer.max_steps={steps}",
        "trainer.eval_strategy=no",
        "trainer.save_strategy=no",
        "trainer.learning_rate=1e-3",
        "trainer.logging_steps=1",
        "held_out.share=0.2",
        "held_out.max_tokens=40k",
    ):
        command += ["--set", setting]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    (step,) = json.loads(done.stdout)["steps"]
    metrics = step["metrics"]
    assert (
        f"{too_long:,} of {pairs:,} pairs ({too_long / pairs:.0%}) are longer than 512 tokens: dropped" in done.stderr
    )
    assert metrics["too_long_rows"] == too_long
    assert metrics["train_loss_first"] == pytest.approx(0.6931, abs=1e-4)
    assert metrics["steps"] == steps
    assert metrics["boundary_share"] == 1.0
    assert (metrics["format"]["chat_template_sha256"] is None) == plain
    assert (metrics["format"]["end_token"], metrics["format"]["end_token_id"]) == ("</s>", 2)
    low, high = metrics["held_out_accuracy_interval"]
    assert 0 <= low <= metrics["held_out_accuracy"] <= high <= 1
    assert f"of {metrics['held_out_pairs']} held-out pairs (95% interval {low:.1%}–{high:.1%})" in done.stderr
    assert json.loads((run / "reward" / "model" / "reward.json").read_text(encoding="utf-8"))["end_token_id"] == 2
