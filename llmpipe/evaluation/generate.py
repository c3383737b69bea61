"""Answers from a model, many prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.data.formats import Conversation
from llmpipe.data.preferences import Prompt
from llmpipe.training import templates
from llmpipe.training.chat import render
from llmpipe.training.models import context_length


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled. A temperature of 0 is greedy; `top_p` keeps the likeliest tokens of that share.

    An answer ends before the first of the texts `until`.
    """

    max_new_tokens: int
    temperature: float
    seed: int
    top_p: float = 1.0
    batch: int = 256
    until: tuple[str, ...] = ()


@dataclass(frozen=True)
class Told:
    """An answer; `finished` says that it came to its end, and was not cut off."""

    text: str
    finished: bool


def answers(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    chat: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    until: Sequence[str] = (),
    batch: int = 256,
) -> list[str]:
    """Return one answer for each prompt, as `told` does."""
    sampling = Sampling(max_new_tokens, temperature, seed, batch=batch, until=tuple(until))
    return [answer.text for answer in told(model, tokenizer, prompts, sampling, chat=chat)]


@torch.no_grad()
def told(
    model: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[str | Prompt], sampling: Sampling, *, chat: bool
) -> list[Told]:
    """Return one answer for each prompt.

    `chat` puts the prompt through the chat template; else the text is continued. The seed is set for the call alone.
    An answer ends where the model's context does, and before the first of `sampling.until`. An encoder-decoder's prompt
    is what its encoder reads.
    """
    if model.config.is_encoder_decoder:
        from llmpipe.evaluation.fill import said

        how: dict[str, Any] = {
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        with torch.random.fork_rng():
            torch.manual_seed(sampling.seed)
            return [
                Told(text, finished=True)
                for text in said(model, tokenizer, [plain(prompt) for prompt in prompts], chat=chat, **how)
            ]
    texts = [rendered(tokenizer, prompt) if chat else plain(prompt) for prompt in prompts]
    special = {"add_special_tokens": not chat}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature or 1.0,
        top_p=sampling.top_p,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        eos_token_id=model.generation_config.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    found = [Told("", finished=False)] * len(texts)
    lengths = tokenizer(texts, **special)["input_ids"]
    with torch.random.fork_rng():
        torch.manual_seed(sampling.seed)
        for room, places in _by_room(lengths, context_length(model), sampling.max_new_tokens):
            config.max_new_tokens = room
            for first in range(0, len(places), sampling.batch):
                chosen = places[first : first + sampling.batch]
                asked = [texts[place] for place in chosen]
                made = _continued(model, tokenizer, asked, config, special, sampling.until)
                for place, one in zip(chosen, made, strict=True):
                    found[place] = one
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
) -> list[Told]:
    """Continue texts as one batch, padded on the left."""
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    encoded = tokenizer(texts, return_tensors="pt", padding=True, **special)
    tokenizer.padding_side = side
    ids, mask = encoded["input_ids"].to(model.device), encoded["attention_mask"].to(model.device)
    ends = StoppingCriteriaList([_Said(tokenizer, until, ids.shape[1])] if until else [])
    made = model.generate(
        input_ids=ids, attention_mask=mask, generation_config=config, use_cache=True, stopping_criteria=ends
    )
    added = made[:, ids.shape[1] :].cpu()
    end_ids = model.generation_config.eos_token_id
    ended = torch.isin(added, torch.tensor([] if end_ids is None else end_ids)).any(dim=1).tolist()
    decoded = tokenizer.batch_decode(added, skip_special_tokens=True)
    return [Told(_cut(text, until).strip(), finished) for text, finished in zip(decoded, ended, strict=True)]


def rendered(tokenizer: Tokenizer, prompt: str | Prompt) -> str:
    """Put a question through the chat template, up to where the answer begins."""
    if isinstance(prompt, Prompt):
        asked = Conversation(prompt.messages, tools=prompt.tools)
        return render(asked, tokenizer, len(prompt.messages), ask=True)
    messages = [{"role": "user", "content": prompt}]
    return str(templates.apply(tokenizer, messages, tokenize=False, add_generation_prompt=True))


def plain(prompt: str | Prompt) -> str:
    """Write a question for a model that continues text."""
    if isinstance(prompt, str):
        return prompt
    return prompt.text if prompt.text is not None else "\n\n".join(turn["content"] for turn in prompt.messages)
