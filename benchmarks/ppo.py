"""Speed of llmpipe's PPO against TRL 1.12's PPOTrainer, the last one it had, at equal sample-updates and steps.

    python -m venv trl112
    trl112/bin/pip install torch==2.13.0 transformers==5.23.0 trl==1.12.0
    python benchmarks/ppo.py --trl-python trl112/bin/python [--rounds 3]

The two take turns as whole processes on the same files: weights, tokenizer, prompts. Policy, value network, reward
model and reference are Llamas with 1 M parameters beside tied embeddings, random; every answer takes all its tokens.
A round's figures are of whole rollouts after the first, from one rollout's last optimizer step to another's, on the
CPU in fp32. llmpipe answers, scores, clips, logs and reports as in a real run; TRL does not clip.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
CASES = {8192: (6, 1.0), 33000: (3, 1.6)}
"""Vocabulary → (rollouts of a round, the ratio promised)."""
WARM_UP = 1
"""Rollouts before the clock starts."""
PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 512, (24, 40), 32
SAMPLES, EPOCHS, MINIBATCHES = 64, 2, 2
STEPS = EPOCHS * MINIBATCHES
"""Optimizer steps of a rollout."""
KL, LEARNING_RATE, TEMPERATURE = 0.05, 1e-6, 1.0
PHASES = ("sampling", "scoring", "learning", "gc")
MEGABYTE = 2**20 if sys.platform == "darwin" else 2**10  # in the units of ru_maxrss


class Meter:
    """Counts optimizer steps and learned samples of a run, times its phases, and prints them as a line of JSON."""

    def __init__(self, model: Any, *, rollouts: int) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.rollouts, self.steps, self.samples = rollouts, 0, 0
        self.seconds: Counter[str] = Counter()
        self.begun = self.ended = (0.0, 0.0)  # wall, CPU
        self.learning_since: float | None = None
        model.register_forward_pre_hook(self._learns, with_kwargs=True)
        register_optimizer_step_post_hook(self._stepped)

    def _learns(self, _model: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        import torch

        if torch.is_grad_enabled():
            self.learning_since = self.learning_since or time.perf_counter()
            self.samples += len(inputs[0] if inputs else named["input_ids"])

    def _stepped(self, *_: Any) -> None:
        self.steps += 1
        if self.steps % STEPS == 0:
            self.ended = time.perf_counter(), time.process_time()
            self.seconds["learning"] += self.ended[0] - self.learning_since
            self.learning_since = None
        if self.steps == WARM_UP * STEPS:
            self.begun, self.samples = self.ended, 0
            self.seconds.clear()

    def timed(self, phase: str, function: Any) -> Any:
        """Return the function as one whose time counts as a phase."""

        def call(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds[phase] += time.perf_counter() - begun

        return call

    def report(self, *, answer_tokens: float) -> None:
        """Print the line; `answer_tokens` is the mean of an answer. What is in no other phase is scoring.

        Raises:
            SystemExit: the work done was not what both sides are to do.
        """
        samples = self.rollouts * SAMPLES
        seconds, cpu_s = (ended - begun for ended, begun in zip(self.ended, self.begun, strict=True))
        if self.steps != (WARM_UP + self.rollouts) * STEPS or self.samples != samples * EPOCHS:
            sys.exit(f"{self.steps} steps and {self.samples} sample-updates: not the work agreed on")
        shares = {phase: self.seconds[phase] / seconds for phase in ("sampling", "learning", "gc")}
        shares["scoring"] = 1 - sum(shares.values())
        figures = {
            "samples_per_s": samples / seconds,
            "samples_per_cpu_s": samples / cpu_s,
            "tokens_per_s": samples * answer_tokens / seconds,
            "answer_tokens": answer_tokens,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE,
            **shares,
        }
        print(json.dumps(figures), flush=True)


def make_inputs(folder: Path, vocabulary: int) -> None:
    """Write policy/, reward/ and prompts.jsonl."""
    import random

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(3, vocabulary))]
    fast = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="left"
    )
    config = LlamaConfig(
        vocab_size=vocabulary, pad_token_id=0, eos_token_id=1, bos_token_id=None, num_labels=1, **SHAPE
    )
    torch.manual_seed(0)
    for name, cls in {"policy": LlamaForCausalLM, "reward": LlamaForSequenceClassification}.items():
        cls(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    dice = random.Random(0)
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(PROMPTS):
            text = " ".join(dice.choices(words[3:], k=dice.randint(*PROMPT_TOKENS)))
            file.write(json.dumps({"prompt": text}) + "\n")


def llmpipe(folder: Path, rollouts: int) -> None:
    """Run the stage `rlhf-ppo` with all it does around its steps, but without held-out prompts or checkpoints."""
    from llmpipe.artifact import StepRecord
    from llmpipe.context import Context
    from llmpipe.stages import rlhf_ppo
    from llmpipe.training import flow, models
    from llmpipe.training.ppo import parts

    settings = rlhf_ppo.Settings.model_validate(
        {
            "model": {"path": str(folder / "policy")},
            "reward": {"path": str(folder / "reward")},
            "data": {"path": str(folder / "prompts.jsonl")},
            "held_out": {"share": 0},
            "rollouts": WARM_UP + rollouts,
            "rollout": {"samples": SAMPLES, "max_new_tokens": ANSWER_TOKENS, "temperature": TEMPERATURE},
            "epochs": EPOCHS,
            "minibatches": MINIBATCHES,
            "kl": {"coefficient": KL},
            "value_learning_rate": LEARNING_RATE,
            "precision": "fp32",
            "trainer": {"learning_rate": LEARNING_RATE, "save_strategy": "no"},
        }
    )
    record = StepRecord(name="b", kind="rlhf-ppo", stage_version=1, fingerprint="", seed=0, settings={}, inputs=[])
    with tempfile.TemporaryDirectory() as run:
        (Path(run) / "b").mkdir()
        ctx = Context(run_dir=Path(run), step=record, emit=lambda event: None)
        policy, tokenizer = models.load(settings.model, ctx)
        ends = parts.end_ids(policy, tokenizer, settings.rollout.stop)
        trainer, _ = rlhf_ppo.prepare(settings, ctx, policy, tokenizer, ends)
        meter = Meter(trainer.model, rollouts=rollouts)
        trainer.collector.sampler = SimpleNamespace(sample=meter.timed("sampling", trainer.collector.sampler.sample))
        flow.fit(trainer, ctx, settings)
    meter.report(answer_tokens=statistics.mean(logs["length"] for logs in trainer.history[WARM_UP:]))


def measured(command: list[str]) -> dict[str, float]:
    """Run one side and return what it printed last."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def shown(name: str, vocabulary: int, runs: list[dict[str, float]]) -> str:
    median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    cells = [f"{median[key]:>9.2f}" for key in ("samples_per_s", "samples_per_cpu_s", "tokens_per_s")]
    cells += [f"{median[phase]:>9.0%}" for phase in PHASES]
    cells += [f"{median['peak_mb']:>9,.0f}", f"{median['answer_tokens']:>9.2f}"]
    return f"{vocabulary:>10,}  {name:<8}  {'  '.join(cells)}"


def compare(trl_python: str, vocabulary: int, rounds: int) -> None:
    rollouts, promised = CASES[vocabulary]
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        inputs = [sys.executable, __file__, "--inputs", folder, "--vocabulary", str(vocabulary)]
        subprocess.run(inputs, check=True, capture_output=True)
        peer = str(Path(__file__).with_name("ppo_trl.py"))
        for _ in range(rounds):
            theirs.append(measured([trl_python, peer, folder, str(rollouts)]))
            ours.append(measured([sys.executable, __file__, "--llmpipe", folder, "--vocabulary", str(vocabulary)]))
    print(shown("TRL 1.12", vocabulary, theirs))
    print(shown("llmpipe", vocabulary, ours))
    ratios = [our["samples_per_s"] / their["samples_per_s"] for our, their in zip(ours, theirs, strict=True)]
    by_round = " ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"{'':>12}llmpipe / TRL {statistics.median(ratios):.2f} ({by_round}), promised {promised}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trl-python", help="the interpreter of an environment with trl 1.12")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, choices=CASES, help="one case only")
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--llmpipe", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if options.inputs:
        make_inputs(options.inputs, options.vocabulary)
        return
    if options.llmpipe:
        llmpipe(options.llmpipe, CASES[options.vocabulary][0])
        return
    if options.trl_python is None:
        parser.error("--trl-python is needed: the interpreter of an environment with trl 1.12")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is busy (load {load:.1f}): the figures are not to be trusted", file=sys.stderr)
    print(f"{SAMPLES} answers a rollout, {EPOCHS} sample-updates each in {STEPS} steps; phases as shares of wall time")
    heads = ("samples/s", "per CPU-s", "tokens/s", *PHASES, "peak MB", "an answer")
    print("  ".join(["vocabulary", "side    ", *(f"{head:>9}" for head in heads)]))
    for vocabulary in CASES:
        if options.vocabulary in (None, vocabulary):
            compare(options.trl_python, vocabulary, options.rounds)


if __name__ == "__main__":
    main()
