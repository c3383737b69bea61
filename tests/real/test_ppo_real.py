"""rlhf-ppo through the installed command, on a real model that ends its stories with its begin token."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.real.shared import STORIES, needs_shared

LLMPIPE = str(Path(sys.executable).with_name("llmpipe"))

BREVITY = '''
def brevity(prompts, answers):
    """The shorter the better, by the character: 400 characters lose 1."""
    return [-len(answer) / 400 for answer in answers]
'''
NAMES = ("Tim", "Lily", "Tom", "Sue", "Max", "Mia", "Ben", "Sam", "Anna", "Jack", "Amy", "Spot")
OPENINGS = (
    "Once upon a time, there was a cat named {}.",
    "One day, {} went to the park.",
    "There was a girl called {}.",
    "{} was a dog who liked to play.",
)


def asked(folder: Path) -> Path:
    rows = [{"prompt": opening.format(name)} for name in NAMES for opening in OPENINGS]
    path = folder / "openings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@needs_shared
def test_stories_get_shorter_and_stay_near_the_model_they_came_from(tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text(BREVITY, encoding="utf-8")
    command = [LLMPIPE, "rlhf-ppo", "--run", str(tmp_path / "run"), "--model", str(STORIES), "--json", "--allow-code"]
    command += ["--data", str(asked(tmp_path)), "--reward", f"{rewards}:brevity"]
    for setting in (
        "rollouts=7",
        "rollout.samples=32",
        "rollout.max_new_tokens=450",
        "rollout.stop=['<s>']",
        "kl.coefficient=0.02",
        "missing_end_penalty=0.5",
        "value_learning_rate=1e-3",
        "held_out.share=0.2",
        "evaluate_answers=32",
        "trainer.learning_rate=2e-4",
    ):
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    (step,) = json.loads(done.stdout)["steps"]
    metrics = step["metrics"]
    assert metrics["length_before"] > 280
    assert metrics["length"] <= 220, metrics
    assert metrics["kl"] <= 10, metrics
    assert metrics["ended_share"] > metrics["ended_share_before"]
    assert "reward rises with length" not in done.stderr
    samples = json.loads((tmp_path / "run" / "rlhf-ppo" / "samples.json").read_text(encoding="utf-8"))["samples"]
    assert all(len(pair["after"]) > 0 and pair["before"] != pair["after"] for pair in samples)
