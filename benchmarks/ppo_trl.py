"""The peer's process of ppo.py: TRL 1.12's PPOTrainer on the files that it wrote; runs in an environment of its own.

    trl112/bin/python benchmarks/ppo_trl.py FOLDER ROLLOUTS

With no accumulation TRL takes a step on each minibatch; with any, the number of minibatches would not change the
number of steps (accelerate counts micro-batches). Its calls of gc.collect are timed apart.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from ppo import ANSWER_TOKENS, EPOCHS, KL, LEARNING_RATE, MINIBATCHES, SAMPLES, TEMPERATURE, WARM_UP, Meter
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


def settings(output: str, rollouts: int) -> PPOConfig:
    return PPOConfig(
        output_dir=output,
        total_episodes=(WARM_UP + rollouts) * SAMPLES,
        per_device_train_batch_size=SAMPLES,
        gradient_accumulation_steps=1,
        num_mini_batches=MINIBATCHES,
        num_ppo_epochs=EPOCHS,
        local_rollout_forward_batch_size=SAMPLES,
        response_length=ANSWER_TOKENS,
        stop_token=None,
        missing_eos_penalty=None,
        temperature=TEMPERATURE,
        kl_coef=KL,
        learning_rate=LEARNING_RATE,
        adam_epsilon=1e-5,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        seed=0,
    )


def main() -> None:
    folder, rollouts = Path(sys.argv[1]), int(sys.argv[2])
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)
    prompts = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text("utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(sys.stderr):
        trainer = PPOTrainer(
            settings(output, rollouts),
            processing_class=tokenizer,
            model=policy,
            ref_model=deepcopy(policy),
            reward_model=reward,
            value_model=deepcopy(reward),
            train_dataset=Dataset.from_dict({"input_ids": tokenizer(prompts)["input_ids"]}),
        )
        meter = Meter(trainer.model, rollouts=rollouts)
        ppo_trainer.batch_generation = meter.timed("sampling", ppo_trainer.batch_generation)
        ppo_trainer.gc = SimpleNamespace(collect=meter.timed("gc", gc.collect))
        trainer.train()
    meter.report(answer_tokens=ANSWER_TOKENS)


if __name__ == "__main__":
    main()
