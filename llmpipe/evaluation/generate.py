"""Answers from a model, many prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
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
    until: Sequence[str] = (),
) -> list[str]:
    """Return one answer for each prompt.

    `chat` puts the prompt through the chat template; else the text is continued. A temperature of 0 is greedy.
    The seed is set for the call alone. An answer ends where the model's context does, and before the first of `until`.
    An encoder-decoder's prompt is what its encoder reads.
    """
    if model.config.is_encoder_decoder:
        from llmpipe.evaluation.fill import said

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return said(model, tokenizer, prompts, chat=chat, max_new_tokens=max_new_tokens, temperature=temperature)
    texts = [rendered(tokenizer, prompt) for prompt in prompts] if chat else list(prompts)
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
    found = [""] * len(texts)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for room, places in _by_room(tokenizer(texts, **special)["input_ids"], context_length(model), max_new_tokens):
            config.max_new_tokens = room
            for first in range(0, len(places), batch):
                chosen = places[first : first + batch]
                made = _continued(model, tokenizer, [texts[place] for place in chosen], config, special, until)
                for place, text in zip(chosen, made, strict=True):
                    found[place] = _cut(text, until).strip()
    return found


def _by_room(prompts: Sequence[Sequence[int]], context: int, wanted: int) -> list[tuple[int, list[int]]]:
    """Group prompts by how many tokens their answers may have, so that a long one takes no room from the others.

    Prompts that fill the context are in no group: there is no answer to them.
    """
    groups: dict[int, list[int]] = {}
    for place, ids in enumerate(prompts):
        groups.setdefault(min(wanted, context - len(ids)), []).append(place)
    return [(room, places) for room, places in groups.items() if room > 0]


class _Said(StoppingCriteria):
    """Stops an answer in which one of some texts has come up."""

    def __init__(self, tokenizer: Tokenizer, until: Sequence[str], prompt_tokens: int) -> None:
        self.tokenizer, self.until, self.prompt_tokens = tokenizer, until, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Tell for each answer, (batch,), whether it is at its end."""
        del scores
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt_tokens :])
        done = [any(end in text for end in self.until) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _cut(text: str, until: Sequence[str]) -> str:
    """Return a text up to where the first of some others begins."""
    return text[: min((place for end in until if (place := text.find(end)) >= 0), default=len(text))]


def _continued(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    texts: list[str],
    config: GenerationConfig,
    special: dict[str, bool],
    until: Sequence[str],
) -> list[str]:
    """Continue texts as one batch, padded on the left."""
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    encoded = tokenizer(texts, return_tensors="pt", padding=True, **special)
    tokenizer.padding_side = side
    ids, mask = encoded["input_ids"].to(model.device), encoded["attention_mask"].to(model.device)
    ends = StoppingCriteriaList([_Said(tokenizer, until, ids.shape[1])] if until else [])
    made = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, use_cache=True, stopping_criteria=ends
    )
    return list(tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True))


def rendered(tokenizer: Tokenizer, prompt: str) -> str:
    """Put a question through the chat template, up to where the answer begins."""
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
