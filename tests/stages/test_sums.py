"""Sums in the form of GSM8K: a tiny model that learned them from a careless teacher gets better at them by reward.

Better at the sums that it practises: a model of 100,000 parameters learns sums by heart, and those held out from the
rewards do not follow. At these rates grpo does not get there with every random start: of two, it went from 6 % to 46 %
and from 9 % to 6 %, rlhf-ppo from 9 % to 45 %.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from llmpipe.artifact import read_manifest
from tests.stages.tiny import run_recipe

REWARDS = Path(__file__).parents[2] / "recipes" / "gsm8k.py"
TERMS = range(1, 10)
RIGHT_SHARE = 0.5


def rows(*, careless: bool) -> list[dict[str, str]]:
    """Every sum of two terms; a careless teacher writes down the first term instead of the result half of the time."""
    draw = random.Random(0)
    made = []
    for left in TERMS:
        for right in TERMS:
            for _ in range(6 if careless else 1):
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
    trainer: {{max_steps: 400, per_device_train_batch_size: 16, learning_rate: 6e-3}}
  taught:
    kind: sft
    model: base
    data: {{path: careless.jsonl}}
    trainer: {{max_steps: 150, per_device_train_batch_size: 16, learning_rate: 3e-3}}
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
    rollouts: 25
    evaluate_answers: 128"""


@pytest.mark.slow
def test_accuracy_rises_with_grpo_and_with_ppo_by_one_function(tmp_path: Path) -> None:
    write(tmp_path / "careless.jsonl", rows(careless=True))
    write(tmp_path / "sums.jsonl", rows(careless=False))
    texts = [f"{row['question']} {row['answer']}" for row in rows(careless=False)] * 40
    (tmp_path / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    run = run_recipe(tmp_path, RECIPE.format(same=SAME.format(rewards=REWARDS)))
    for name in ("grpo", "ppo"):
        lines = [json.loads(line) for line in (run / name / "metrics.jsonl").read_text().splitlines()]
        right = [line["reward_exact_match"] for line in lines if "rollout" in line]
        assert len(right) == 25
        assert fmean(right[:3]) < 0.2 and fmean(right[-3:]) > fmean(right[:3]) + 0.15, (name, right)
        manifest = read_manifest(run / name)
        assert manifest is not None
        (source,) = [entry.source["function"] for entry in manifest.inputs if entry.field == "reward"]
        assert source == f"{REWARDS}:exact_match"
