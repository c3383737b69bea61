"""Answers from a model, many prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.training.models import context_length


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    chat: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch: int = 256,
) -> list[str]:
    """Return one answer for each prompt.

    `chat` puts the prompt through the chat template; else the text is continued. A temperature of 0 is greedy.
    The seed is set for the call alone. An answer ends where the model's context does.
    """
    texts = [_rendered(tokenizer, prompt) for prompt in prompts] if chat else list(prompts)
    special = {"add_special_tokens": not chat}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        eos_token_id=model.generation_config.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    found: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for first in range(0, len(texts), batch):
            side = tokenizer.padding_side
            tokenizer.padding_side = "left"
            encoded = tokenizer(texts[first : first + batch], return_tensors="pt", padding=True, **special)
            tokenizer.padding_side = side
            room = context_length(model) - encoded["input_ids"].shape[1]
            config.max_new_tokens = max(1, min(max_new_tokens, room))
            ids, mask = encoded["input_ids"].to(model.device), encoded["attention_mask"].to(model.device)
            made = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, use_cache=True)
            found += tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in found]


def _rendered(tokenizer: Tokenizer, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
