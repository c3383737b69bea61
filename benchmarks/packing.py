"""Useful tokens per second of training: packed rows against batches of 8 padded to their longest, random and sorted.

    python benchmarks/packing.py alpaca_en_demo.json [--rounds 5]

One model learns from the same conversations in three arrangements that take turns. Useful tokens are those that are
not padding. Packed rows are packed and told apart as `sft` does; the padded arms are given neither positions nor a
mask, which a causal model does not need for padding on the right, so nothing holds them back but the padding. A batch
of the packed arm has about as many tokens, padding counted in, as an average random one. With OMP_NUM_THREADS=1 the
clock is the process's CPU time, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from pathlib import Path

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmpipe.data.formats import conversations
from llmpipe.data.rows import read_rows
from llmpipe.stages import tokenizer as tokenizers
from llmpipe.training import shapes
from llmpipe.training.chat import PackCollator, encode, rows_of
from llmpipe.training.packing import IGNORED, best_fit

Batch = dict[str, torch.Tensor]
SIZE, VOCAB, CONTEXT, PADDED_ROWS = 4_000_000, 4096, 512, 8


def examples_of(file: Path) -> tuple[list, PreTrainedTokenizerFast]:
    """Encode the conversations that fit, with a tokenizer learned on them."""
    found = [conversation for _, conversation in conversations(read_rows([file]))]
    settings = tokenizers.Settings.model_validate({"vocab_size": VOCAB})
    texts = (message["content"] for conversation in found for message in conversation.messages)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.learn(settings, texts), bos_token="<|bos|>", eos_token="<|end|>",
        pad_token="<|pad|>", chat_template=tokenizers.CHAT_TEMPLATE,
    )  # fmt: skip
    examples = [encode(conversation, tokenizer) for conversation in found]
    return [example for example in examples if len(example.ids) <= CONTEXT], tokenizer


def arrangements(examples: list, pad_id: int) -> dict[str, list[Batch]]:
    """Return the batches of an epoch in each arrangement, in random order."""
    lengths = [len(example.ids) for example in examples]
    shuffled = random.Random(0).sample(range(len(examples)), len(examples))
    padded = {"random": shuffled, "sorted": sorted(shuffled, key=lengths.__getitem__)}
    batches = {
        name: [collated(examples, [[index] for index in order[first : first + PADDED_ROWS]], pad_id)
               for first in range(0, len(order), PADDED_ROWS)]
        for name, order in padded.items()
    }  # fmt: skip
    for batch in [batch for arm in batches.values() for batch in arm]:
        del batch["position_ids"]
    tokens = statistics.mean(batch["input_ids"].numel() for batch in batches["random"])
    rows = best_fit(lengths, block=CONTEXT)
    random.Random(0).shuffle(rows)
    size = max(1, round(tokens / CONTEXT))
    batches["packed"] = [collated(examples, rows[first : first + size], pad_id) for first in range(0, len(rows), size)]
    for arm in batches.values():
        random.Random(1).shuffle(arm)
    return batches


def collated(examples: list, groups: list[list[int]], pad_id: int) -> Batch:
    columns = rows_of(examples, groups)
    return PackCollator(pad_id)([{key: value[row] for key, value in columns.items()} for row in range(len(groups))])


def useful(batch: Batch, pad_id: int) -> int:
    return int((batch["input_ids"] != pad_id).sum())


def learn(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batches: list[Batch], pad_id: int) -> float:
    """Return useful tokens per second over some batches; of one thread's CPU time, if there is but one thread."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = clock()
    for batch in batches:
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return sum(useful(batch, pad_id) for batch in batches) / (clock() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="batches of each arm in a round")
    given = parser.parse_args()
    examples, tokenizer = examples_of(given.file)
    pad_id = tokenizer.pad_token_id
    arms = arrangements(examples, pad_id)
    torch.manual_seed(0)
    shape = shapes.dial(SIZE, vocab_size=len(tokenizer))
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, **shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    for name, arm in arms.items():
        total = sum(batch["input_ids"].numel() for batch in arm)
        asked = sum(int((batch["labels"] != IGNORED).sum()) for batch in arm)
        print(f"{name:7} {len(arm):4} batches, {total / len(arm):6.0f} tokens each, "
              f"{1 - sum(useful(batch, pad_id) for batch in arm) / total:5.1%} padding, {asked:,} labels")  # fmt: skip
        learn(model, optimizer, arm[:1], pad_id)
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(given.rounds):
        for name, arm in arms.items():
            first = turn * given.steps % max(1, len(arm) - given.steps)
            speeds[name].append(learn(model, optimizer, arm[first : first + given.steps], pad_id))
    for name, found in speeds.items():
        ratios = [speed / base for speed, base in zip(found, speeds["random"], strict=True)]
        print(f"{name:7} {statistics.median(found):7.0f} useful tokens/s, {statistics.median(ratios):.2f} x random")


if __name__ == "__main__":
    main()
