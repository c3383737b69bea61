"""How masked models and encoder–decoders guess what is hidden from them, and what they put in its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.training import denoising, masked, templates
from llmpipe.training.documents import DocumentRows, framing, write_pieces
from llmpipe.training.objectives import READY, mean_nats
from llmpipe.training.packing import IGNORED

GAP = "[MASK]"
"""What stands for a missing word in a prompt, whatever the model's own token for it is."""


@torch.no_grad()
def score_hidden(
    model: PreTrainedModel, tokenizer: Tokenizer, texts: Iterable[str], *, window: int, max_tokens: int
) -> tuple[float, int]:
    """Hide parts of texts as pretrain does; returns mean nats of a token that is asked for, and their number.

    What is hidden depends on the text alone, so that models with one tokenizer are asked the same. After the text in
    which `max_tokens` are reached, no further one is read.
    """
    objective = "denoising" if model.config.is_encoder_decoder else "masked"
    nats = targets = 0.0
    with TemporaryDirectory() as folder:
        limited = _up_to(texts, tokenizer, max_tokens)
        rows = _rows(model, tokenizer, limited, Path(folder) / "text.tokens", window=window)
        size = max(1, 16384 // window)
        for first in range(0, len(rows), size):
            indices = range(first, min(first + size, len(rows)))
            batch = {key: value.to(model.device) for key, value in rows.__getitems__(indices).items()}
            inputs = READY[objective](model, batch)
            labels = inputs.pop("labels")
            asked = int((labels != IGNORED).sum())
            nats += float(mean_nats(model(**inputs), labels)) * asked
            targets += asked
    return nats / targets if targets else 0.0, int(targets)


def _up_to(texts: Iterable[str], tokenizer: Tokenizer, max_tokens: int) -> Iterator[str]:
    taken = 0
    for text in texts:
        yield text
        taken += len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if taken >= max_tokens:
            return


def _rows(
    model: PreTrainedModel, tokenizer: Tokenizer, texts: Iterable[str], path: Path, *, window: int
) -> DocumentRows:
    """Write texts in pieces and read them a piece to a row: packing changes no logits, and not all models pack."""
    options: dict[str, Any] = {"block": window, "seed": 0, "packing": False}
    if model.config.is_encoder_decoder:
        longest = denoising.longest_piece(denoising.noise_for(model, tokenizer), tokenizer, block=window)
        write_pieces(texts, tokenizer, path, shortest=2, longest=longest, words=False)
        return denoising.DenoisingRows(path, model, tokenizer, **options)
    longest = window - sum(map(len, framing(tokenizer)))
    write_pieces(texts, tokenizer, path, shortest=1, longest=longest, words=False)
    return masked.MaskedRows(path, tokenizer, whole_word=False, **options)


@torch.no_grad()
def filled(model: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """Put the likeliest token in each gap of a prompt, all gaps at once; a prompt without one gets one at its end."""
    found = []
    for prompt in prompts:
        ids = tokenizer(_with_gap(prompt, tokenizer.mask_token), return_tensors="pt")["input_ids"].to(model.device)
        gaps = ids == tokenizer.mask_token_id
        ids[gaps] = model(input_ids=ids).logits[gaps].argmax(-1)
        found.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    return found


def _with_gap(prompt: str, token: str) -> str:
    """Write the model's token for a gap; a byte-level word has its space inside, so the one before a gap goes."""
    text = prompt if GAP in prompt or token in prompt else f"{prompt.rstrip()} {GAP}"
    return text.replace(f" {GAP}", token).replace(GAP, token)


def said(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    chat: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
) -> list[str]:
    """Return what an encoder–decoder says to each prompt; with `chat` as an answer, else in the gap of the prompt.

    Of a T5, what it says in a gap ends at the next sentinel; a BART says the whole text.
    """
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
        top_p=top_p,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=model.generation_config.eos_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
    )
    sentinels = denoising.uses_sentinels(model.config.model_type)
    gap = denoising.SENTINEL.format(0) if sentinels else tokenizer.mask_token
    stop = denoising.SENTINEL.format(1)
    found = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        answers = chat and GAP not in prompt
        text = str(templates.apply(tokenizer, messages, tokenize=False, add_generation_prompt=True)) if answers else ""
        encoded = tokenizer(text or _with_gap(prompt, gap), add_special_tokens=not answers, return_tensors="pt")
        ids = encoded["input_ids"].to(model.device)
        made = model.generate(input_ids=ids, generation_config=config, use_cache=True)[0]
        if sentinels:
            ends = (made == tokenizer.convert_tokens_to_ids(stop)).nonzero()
            made = made[: int(ends[0])] if len(ends) else made
        found.append(tokenizer.decode(made, skip_special_tokens=True).strip())
    return found
