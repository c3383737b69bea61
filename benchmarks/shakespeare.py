"""The shakespeare-cpu recipe against a bare loop in nanoGPT's CPU setting: loss and wall time, taking turns.

    python benchmarks/shakespeare.py path/to/tinyshakespeare.txt [--seeds 3]

The loop is a plain GPT (LayerNorm, GELU, learned positions, 0.8 M parameters): 2,000 steps of 12 x 64 characters,
AdamW, cosine from 1e-3 to 1e-4, with 20 batches of each split measured every 250 steps. Both are timed as whole
processes, imports included; both losses are over the whole validation split in windows of 64.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = Path(__file__).parents[1] / "recipes" / "shakespeare-cpu.yaml"
ROWS, CONTEXT, WIDTH, LAYERS, HEADS, STEPS = 12, 64, 128, 4, 4, 2000


def bare(text_file: str, seed: int) -> None:
    """Train the bare loop and print its validation loss in nats per character."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x):
            rows, length, _ = x.shape
            heads = self.qkv(self.norm1(x)).view(rows, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, WIDTH))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class GPT(nn.Module):
        def __init__(self, vocab_size: int) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(vocab_size, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.norm, self.head = nn.LayerNorm(WIDTH, bias=False), nn.Linear(WIDTH, vocab_size, bias=False)
            self.head.weight = self.tokens.weight
            for name, parameter in self.named_parameters():
                if parameter.dim() == 2:
                    scale = math.sqrt(2 * LAYERS) if name.endswith(("out.weight", "down.weight")) else 1
                    nn.init.normal_(parameter, std=0.02 / scale)

        def forward(self, ids, targets):
            x = self.blocks(self.tokens(ids) + self.positions(torch.arange(ids.shape[1])))
            return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())

    torch.manual_seed(seed)
    text = Path(text_file).read_text(encoding="utf-8")
    letters = {letter: index for index, letter in enumerate(sorted(set(text)))}
    ids = torch.tensor([letters[letter] for letter in text])
    cut = round(0.9 * len(ids))
    splits = {"train": ids[:cut], "val": ids[cut:]}

    def batch(split: str):
        starts = torch.randint(len(splits[split]) - CONTEXT - 1, (ROWS,))
        rows = torch.stack([splits[split][start : start + CONTEXT + 1] for start in starts])
        return rows[:, :-1], rows[:, 1:]

    model = GPT(len(letters))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    for step in range(STEPS):
        rate = (
            1e-3 * step / 100 if step < 100 else 1e-4 + 4.5e-4 * (1 + math.cos(math.pi * (step - 100) / (STEPS - 100)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        if step % 250 == 0:
            with torch.no_grad():
                for split in splits:
                    torch.stack([model(*batch(split)) for _ in range(20)]).mean().item()
        loss = model(*batch("train"))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            loss.item()
    held_out = splits["val"]
    windows = (len(held_out) - 1) // CONTEXT
    with torch.no_grad():
        inputs = held_out[: windows * CONTEXT].view(windows, CONTEXT)
        targets = held_out[1 : windows * CONTEXT + 1].view(windows, CONTEXT)
        print(json.dumps({"nats_per_character": float(model(inputs, targets))}))


def timed(command: list[str], **options) -> tuple[float, str]:
    begun = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, **options)
    return time.perf_counter() - begun, done.stdout


def llmpipe(text_file: str, seed: int, folder: Path) -> tuple[float, float]:
    """Run the recipe's tokenizer and pretrain stages against the clock, then score the whole split."""
    path = json.dumps(str(Path(text_file).absolute()))
    run = ["llmpipe", "run", str(RECIPE), "--run", str(folder / f"seed{seed}"), "--set", f"seed={seed}"]
    run += ["--set", f"tok.data.path={path}", "--set", f"base.data.path={path}"]
    seconds, _ = timed([*run, "--until", "base"])
    timed(run)
    scores = json.loads((folder / f"seed{seed}" / "scores" / "scores.json").read_text(encoding="utf-8"))
    return seconds, scores["models"]["base"]["nats_per_character"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare is not None:
        bare(options.text, options.bare)
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(1, options.seeds + 1):
            bare_s, printed = timed([sys.executable, __file__, options.text, "--bare", str(seed)])
            ours_s, loss = llmpipe(options.text, seed, Path(temporary))
            rows.append((json.loads(printed)["nats_per_character"], bare_s, loss, ours_s))
            print(
                "seed {}: bare {:.3f} nats/char {:.1f} s, llmpipe {:.3f} nats/char {:.1f} s".format(seed, *rows[-1]),
                flush=True,
            )
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    print("mean:   bare {:.3f} nats/char {:.1f} s, llmpipe {:.3f} nats/char {:.1f} s".format(*means))
    print(f"time ratio llmpipe / bare, median: {statistics.median(row[3] / row[1] for row in rows):.2f}")


if __name__ == "__main__":
    main()
