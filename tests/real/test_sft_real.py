"""sft through the installed command, from a real model whose pad is its end token and which has no chat template."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.shared import STORIES, needs_shared, real

LLMPIPE = str(Path(sys.executable).with_name("llmpipe"))


def teach(run: Path, data: Path) -> subprocess.CompletedProcess[str]:
    command = [LLMPIPE, "sft", "--run", str(run), "--model", str(STORIES), "--data", str(data), "--json"]
    for setting in ("num_train_epochs=1", "learning_rate=1e-3", "per_device_train_batch_size=4", "logging_steps=5"):
        command += ["--set", f"trainer.{setting}"]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


@needs_shared
@pytest.mark.parametrize(("name", "total"), [("alpaca_en_demo.json", 999), ("v1_sft_demo.jsonl", 500)])
def test_a_real_model_learns_to_answer(tmp_path: Path, name: str, total: int) -> None:
    done = teach(tmp_path / "run", real("sft", name))
    assert done.returncode == 0, done.stderr
    (step,) = json.loads(done.stdout)["steps"]
    metrics = step["metrics"]
    assert metrics["train_loss"] < metrics["train_loss_first"]
    assert metrics["held_out_loss"] < metrics["held_out_loss_before"] - 0.5
    assert metrics["rows"] + metrics["held_out_rows"] + metrics["too_long_rows"] == total
    assert f"{metrics['too_long_rows']} of {total} conversations" in done.stderr
    assert "pad token was the end token; it is now <unk> (id 0)" in done.stderr
    assert "the model has no chat template; a plain one is set" in done.stderr
    _answers(tmp_path / "run" / "sft" / "model")


def _answers(folder: Path) -> None:
    """Load the result as anyone would, with transformers alone, and have it answer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    question = [{"role": "user", "content": "What is your name?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert any(letter.isalpha() for letter in answer)
