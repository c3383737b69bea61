"""Sums in the form of GSM8K: a tiny model that learned them from a careless teacher gets better at them by reward.

The teacher writes down the first term instead of the result half of the time, and a model that copies it does too. What
the reward can teach is to be careful, so sums that no reward was given for get better as well.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

from llmpipe.artifact import read_manifest
from tests.stages.tiny import run_recipe

REWARDS = Path(__file__).parents[2] / "recipes" / "gsm8k.py"
TERMS = range(1, 7)
RIGHT_SHARE = 0.5
ROLLOUTS = 12


def rows(*, careless: bool) -> list[dict[str, str]]:
    """Every sum of two terms; a careless teacher writes down the first term instead of the result half of the time."""
    draw = random.Random(0)
    made = []
    for left in TERMS:
        for right in TERMS:
            for _ in range(8 if careless else 1):
                wrong = careless and draw.random() > RIGHT_SHARE
                total = left + (0 if wrong else right)
                made.append({"question": f"{left}+{right}?", "answer": f"#### {total}"})
    draw.shuffle(made)
    return made


def write(path: Path, found: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


RECIPE = """\
name: sums
seed: 1
stages:
  tok: {{kind: tokenizer, algorithm: char, data: {{path: text.txt}}}}
  base:
    kind: pretrain
    data: {{path: text.txt}}
    model: {{size: 100k}}
    context: 32
    trainer: {{max_steps: 400, per_device_train_batch_size: 16, learning_rate: 6e-3, eval_steps: 400}}
  taught:
    kind: sft
    model: base
    data: {{path: careless.jsonl}}
    trainer: {{max_steps: 300, per_device_train_batch_size: 16, learning_rate: 3e-3, eval_steps: 300}}
  grpo:
    kind: grpo
    {same}
    epochs: 2
    minibatches: 2
    rollout: {{samples: 128, samples_per_prompt: 8, max_new_tokens: 10}}
    trainer: {{learning_rate: 1e-3, lr_scheduler_type: constant}}
  ppo:
    kind: rlhf-ppo
    {same}
    rollout: {{samples: 128, max_new_tokens: 10}}
    value_learning_rate: 2e-3
    trainer: {{learning_rate: 1e-3, lr_scheduler_type: constant}}
"""
SAME = """model: taught
    reward: {{function: "{rewards}:exact_match"}}
    data: {{path: sums.jsonl}}
    held_out: {{share: 0.1}}
    missing_end_penalty: 0.0
    rollouts: {rollouts}
    evaluate_answers: 128"""


def test_accuracy_rises_with_grpo_and_with_ppo_by_one_function(tmp_path: Path) -> None:
    write(tmp_path / "careless.jsonl", rows(careless=True))
    write(tmp_path / "sums.jsonl", rows(careless=False))
    texts = [f"{row['question']} {row['answer']}" for row in rows(careless=False)] * 40
    random.Random(1).shuffle(texts)
    (tmp_path / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    run = run_recipe(tmp_path, RECIPE.format(same=SAME.format(rewards=REWARDS, rollouts=ROLLOUTS)))
    for name in ("grpo", "ppo"):
        lines = [json.loads(line) for line in (run / name / "metrics.jsonl").read_text().splitlines()]
        right = [line["reward_exact_match"] for line in lines if "rollout" in line]
        assert len(right) == ROLLOUTS
        assert fmean(right[-4:]) > fmean(right[:2]) + 0.15, (name, right)
        manifest = read_manifest(run / name)
        assert manifest is not None
        assert manifest.metrics["reward"] > manifest.metrics["reward_before"]  # of sums that no reward was given for
        (source,) = [entry.source["function"] for entry in manifest.inputs if entry.field == "reward"]
        assert source == f"{REWARDS}:exact_match"
