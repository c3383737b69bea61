"""Memory of rlhf-ppo with four roles on one base, against four models of their own.

    python benchmarks/adapters.py [--rollouts 3]

Both sides run the stage on the same random Llama of 40 M parameters and the same prompts, each in a process of its own:
`adapter` with `lora:` and a reward model that is an adapter on the policy's base; `whole` with a policy, a value
network, a frozen reference and a frozen reward model. A side's own memory is its peak less what it had once all was
imported, as Linux counts it. Ends with 1 where one base takes more than half of four models. That both give the same
losses is a test, tests/stages/test_one_base.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MOST = 0.5
SHAPE = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 1376,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
VOCABULARY = 4096
PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 64, 8, 8
SAMPLES, MICRO_BATCH_TOKENS = 16, 128
LORA = {"r": 8, "lora_alpha": 16}
COMMAND = (sys.executable, __file__)


def make_inputs(folder: Path) -> None:
    """Write the base, a reward model that is an adapter on it, the same as a model of its own, and prompts."""
    import random

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from llmpipe.training import adapters, reward_model
    from llmpipe.training import models as loading
    from llmpipe.training.ppo.shared import put

    words = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(3, VOCABULARY))]
    fast = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=1, bos_token_id=None, **SHAPE)
    base = LlamaForCausalLM(config)
    loading.save(base, tokenizer, folder / "base")

    judge = put(reward_model.classifier(base, ("reward",)), LORA, None)
    for name, parameter in judge.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            torch.nn.init.normal_(parameter, std=0.02)
    form = reward_model.RewardFormat(None, 1, reward_model.vocabulary_of(tokenizer), ("reward",), (1.0,))
    reward = reward_model.RewardModel(judge, tokenizer, form)
    reward_model.save(reward, folder / "adapter", adapters.Beginning(base, tokenizer, None, "../base", None))
    reward = reward_model.RewardModel(judge.merge_and_unload(), tokenizer, form)
    reward_model.save(reward, folder / "whole")
    dice = random.Random(0)
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(PROMPTS):
            file.write(json.dumps({"prompt": " ".join(dice.choices(words[3:], k=PROMPT_TOKENS))}) + "\n")


def megabytes(field: str) -> float:
    """Read a figure of this process: VmHWM is its peak of resident memory, VmRSS what it has now."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def run_stage(folder: Path, side: str, rollouts: int) -> None:
    """Run the stage as one of the sides, and print its memory as a line of JSON."""
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    from llmpipe.artifact import StepRecord
    from llmpipe.context import Context
    from llmpipe.stages import rlhf_ppo
    from llmpipe.training import arguments, flow  # noqa: F401
    from llmpipe.training.ppo import judges, parts, trainer  # noqa: F401

    torch.set_num_threads(1)
    imported = megabytes("VmRSS")
    stage: dict[str, Any] = {
        "model": {"path": str(folder / "base")},
        "reward": {"path": str(folder / side)},
        "data": {"path": str(folder / "prompts.jsonl")},
        "held_out": {"share": 0},
        "rollouts": rollouts,
        "rollout": {"samples": SAMPLES, "max_new_tokens": ANSWER_TOKENS},
        "micro_batch_tokens": MICRO_BATCH_TOKENS,
        "value_warmup_rollouts": 0,
        "precision": "fp32",
        "trainer": {"learning_rate": 1e-5, "save_strategy": "no"},
    }
    settings = rlhf_ppo.Settings.model_validate(stage | ({"lora": LORA} if side == "adapter" else {}))
    record = StepRecord(name="b", kind="rlhf-ppo", stage_version=1, fingerprint="", seed=0, settings={}, inputs=[])
    said: list[str] = []
    with tempfile.TemporaryDirectory() as run:
        (Path(run) / "b").mkdir()
        ctx = Context(run_dir=Path(run), step=record, emit=lambda event: said.append(event.get("text", "")))
        begun = time.perf_counter()
        result = rlhf_ppo.run(settings, ctx)
        seconds = time.perf_counter() - begun
    shares = any("the reward model adapter share one base" in text for text in said)
    if not all(gate.passed for gate in result.gates) or shares != (side == "adapter"):
        sys.exit(f"not what was to be measured: {result.gates} {said}")
    peak = megabytes("VmHWM")
    print(json.dumps({"imported_mb": imported, "peak_mb": peak, "own_mb": peak - imported, "seconds": seconds}))


def measured(folder: Path, side: str, rollouts: int) -> dict[str, float]:
    command = [*COMMAND, "--side", side, "--folder", str(folder), "--rollouts", str(rollouts)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side:<8}" + "".join(f"{found[key]:>12,.0f}" for key in ("imported_mb", "peak_mb", "own_mb", "seconds")))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rollouts", type=int, default=3)
    parser.add_argument("--side", choices=("inputs", "adapter", "whole"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if options.side == "inputs":
        make_inputs(options.folder)
        return
    if options.side:
        run_stage(options.folder, options.side, options.rollouts)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subprocess.run([*COMMAND, "--side", "inputs", "--folder", place], check=True, capture_output=True)
        print(f"{'side':<8}{'imported MB':>12}{'peak MB':>12}{'its own MB':>12}{'seconds':>12}")
        one, four = (measured(folder, side, options.rollouts) for side in ("adapter", "whole"))
    ratio = one["own_mb"] / four["own_mb"]
    print(f"one base / four models {ratio:.2f}, promised at most {MOST}")
    sys.exit(ratio > MOST)


if __name__ == "__main__":
    main()
