"""What differs between the objectives of pretrain: special tokens, rows, the trainer, and the proof that rows pack.

Causal models learn from `packing.PackedTokens`; masked and denoising ones from `documents.DocumentRows`, whose batches
a function `ready` turns into what the model's forward takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tokenizers import models, processors
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe import gates
from llmpipe.artifact import Gate
from llmpipe.context import Context
from llmpipe.errors import StageError
from llmpipe.training import denoising, masked
from llmpipe.training.documents import DocumentRows, NewDraws, framing
from llmpipe.training.flow import Measured
from llmpipe.training.models import PAD_NAMES, accepts_positions
from llmpipe.training.packing import IGNORED, Batch, PackedTokens, identity

MASK = "<|mask|>"
PROBE_TOKENS, PROBE_ROWS = 8, 8
PROBE_ENDS = 2**20
"""Tokens among which the end of a document is looked for."""
PROBE_SHIFT = 1e-4
"""The most that logits may differ, as a share of the largest: rounding is 1e-6 of it, the least leak seen 1.5e-3."""


def mend_special_tokens(tokenizer: Tokenizer, objective: str, arch: str, ctx: Context) -> None:
    """Give a tokenizer what an objective needs and it lacks: a mask or sentinels, and an end after each text.

    Done here and not by the tokenizer stage, so that one tokenizer serves all objectives, those from elsewhere too.
    The begin and end tokens become BERT's cls and sep, as in RoBERTa: they say the same, and later stages look for both
    names.
    """
    if objective == "causal":
        return
    missing: list[str] = []
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_NAMES[0]})
    if objective == "denoising" and denoising.uses_sentinels(arch):
        known = tokenizer.get_vocab()
        names = [denoising.SENTINEL.format(number) for number in range(denoising.SENTINELS)]
        missing = [name for name in names if name not in known]
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    elif tokenizer.mask_token is None:
        missing = [MASK]
        tokenizer.add_special_tokens({"mask_token": MASK})
    for name, twin in (("cls", "bos"), ("sep", "eos")):
        if getattr(tokenizer, f"{name}_token") is None:
            setattr(tokenizer, f"{name}_token", getattr(tokenizer, f"{twin}_token"))
    if not framing(tokenizer)[1]:
        _close(tokenizer)
    if missing:
        shown = missing[0] if len(missing) == 1 else f"{missing[0]} … {missing[-1]}"
        ctx.say(f"the tokenizer has learned {shown}, which objective: {objective} needs")


def say_what_it_cannot_write(tokenizer: Tokenizer, objective: str, ctx: Context) -> None:
    """Say so where a model that is to write gets a tokenizer of whole words, which has no other words to write."""
    if objective == "masked" or not isinstance(tokenizer.backend_tokenizer.model, models.WordLevel):
        return
    if all(len(word) == 1 for word in tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)):
        return  # letters
    ctx.say(
        f"the tokenizer knows {len(tokenizer):,} words whole: the model can write no other, and reads each other as "
        f"{tokenizer.unk_token}; algorithm: bpe can write everything"
    )


def _close(tokenizer: Tokenizer) -> None:
    """Have the tokenizer put the end token after a text."""
    begin, end = tokenizer.cls_token, tokenizer.sep_token
    opening = f"{begin} " if begin else ""
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (begin, end) if token]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{opening}$A {end}", pair=f"{opening}$A {end} $B {end}", special_tokens=special
    )


def mean_nats(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
    """Return the mean nats of the labels that are not ignored, which stand where they are guessed (no shift).

    BERT and T5 of transformers 5.24 do not divide by the tokens of all accumulated batches, though Trainer takes it
    that they do, as their forwards take any keyword: without this, two half batches would count twice.
    """
    asked = labels != IGNORED
    nats = cross_entropy(outputs.logits[asked].float(), labels[asked], reduction="sum")
    return nats / (asked.sum() if num_items_in_batch is None else num_items_in_batch)


Ready = Callable[[PreTrainedModel, Batch], dict[str, Any]]
READY: dict[str, Ready] = {
    "causal": lambda _model, batch: batch | {"use_cache": False},
    "masked": masked.ready,
    "denoising": denoising.ready,
}


class PretrainTrainer(Measured, Trainer):
    """Trainer with llmpipe's guards and measures."""


class ObjectiveTrainer(PretrainTrainer):
    """The same for masked and denoising models: labels stand where they are guessed, batches are made ready."""

    def __init__(self, *, objective: str, train_dataset: Any, exp_of_loss: str | None = None, **options: Any) -> None:
        super().__init__(train_dataset=train_dataset, data_collator=identity, compute_loss_func=mean_nats, **options)
        self.objective, self.exp_of_loss = objective, exp_of_loss
        if isinstance(train_dataset, DocumentRows):
            self.add_callback(NewDraws(train_dataset))

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """Compute Trainer's loss on a batch that is made ready."""
        bare = self.accelerator.unwrap_model(model)
        return super().compute_loss(model, READY[self.objective](bare, inputs), *arguments, **options)

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss of a batch and how many tokens it is the mean of."""
        inputs = READY[self.objective](self.model, batch)
        labels = inputs.pop("labels")
        return mean_nats(self.model(**inputs), labels), (labels != IGNORED).sum()

    def losses(self, loss: float) -> dict[str, float]:
        """Name the held-out loss and, where that says something, exp of it."""
        return {"loss": loss} | ({self.exp_of_loss: math.exp(min(loss, 700.0))} if self.exp_of_loss else {})


def trainer_for(objective: str, **options: Any) -> PretrainTrainer:
    """Return the trainer that an objective of pretrain takes."""
    if objective == "causal":
        return PretrainTrainer(data_collator=identity, **options)
    name = "pseudo_perplexity" if objective == "masked" else None  # arXiv:1910.14659; of what is hidden
    return ObjectiveTrainer(objective=objective, exp_of_loss=name, **options)


def refuse_leaks(model: PreTrainedModel, tokenizer: Tokenizer, objective: str) -> None:
    """Put two documents into a row, and refuse to pack if the second has other logits there than alone.

    Raises:
        StageError: the architecture does not keep packed documents apart.
    """
    name = type(model).__name__
    if objective != "denoising" and not accepts_positions(model):
        raise StageError(f"{name} takes no position ids, so packed rows would leak", hint="packing: false")
    try:
        apart = keeps_apart(model, tokenizer, objective)
    except Exception as error:  # what does not take such masks fails in as many ways as there are architectures
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise StageError(f"{name} takes no masks for packed rows ({said})", hint="packing: false") from error
    if not apart:
        why = "its positions do not begin anew in each" if objective == "denoising" else "they see each other"
        raise StageError(f"packed documents have other logits in {name} than alone: {why}", hint="packing: false")


def learned(rows: Any, tokenizer: Tokenizer, objective: str) -> list[Gate]:
    """Check on the first rows that the loss falls on something and, but for masked models, on the end of documents."""
    first = range(min(PROBE_ROWS, len(rows)))
    labels = rows.__getitems__(first)["labels"]
    found = [gates.something_learned(int((labels != IGNORED).sum()), f"tokens in {len(first)} rows")]
    if objective == "masked":
        return found
    end = tokenizer.eos_token_id if objective == "causal" else framing(tokenizer)[1][-1]
    if isinstance(rows, PackedTokens):  # rows that hold an end: a document may be longer than many rows
        places = np.flatnonzero(rows.tokens[: min(PROBE_ENDS, len(rows) * rows.block)] == end)
        if not len(places):
            return [*found, gates.end_is_learned(float(rows.tokens[-1] == end))]
        labels = rows.__getitems__(np.unique(places // rows.block)[:PROBE_ROWS].tolist())["labels"]
    return [*found, gates.end_is_learned(float((labels == end).any(1).float().mean()))]


def gate(model: PreTrainedModel, tokenizer: Tokenizer, objective: str) -> Gate:
    """Check on trained weights what `refuse_leaks` checks on the first ones, which attend to nothing in particular."""
    return gates.gate("packed-documents-apart", keeps_apart(model, tokenizer, objective))


@torch.no_grad()
def keeps_apart(model: PreTrainedModel, tokenizer: Tokenizer, objective: str, *, tokens: int = PROBE_TOKENS) -> bool:
    """Whether a document has the same logits beside another one as alone."""
    special = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}  # RoBERTa counts positions past padding
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    first, second = (np.resize(ordinary, count + tokens)[-tokens:] for count in (0, tokens))
    was_training = model.training
    model.eval()
    try:
        packed, alone = (probe(model, tokenizer, objective, documents) for documents in ([first, second], [second]))
    finally:
        model.train(was_training)
    beside = packed[:, -alone.shape[1] :]
    return bool((beside - alone).abs().max() <= PROBE_SHIFT * alone.abs().max())


def probe(model: PreTrainedModel, tokenizer: Tokenizer, objective: str, documents: list[Any]) -> torch.Tensor:
    """Return the logits of documents in one row, (1, tokens, vocabulary); of one alone, as if nothing were packed."""
    packed, pad_id = len(documents) > 1, tokenizer.pad_token_id
    if objective == "causal":
        ids = torch.from_numpy(np.concatenate(documents))[None].long()
        positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
        batch = {"input_ids": ids} | ({"position_ids": positions} if packed else {})
    elif objective == "masked":
        batch = masked.collate([documents], pad_id=pad_id, packed=packed)
    else:
        start = model.config.decoder_start_token_id
        halves = [document[: len(document) // 2] for document in documents]
        batch = denoising.collate([documents], [halves], pad_id=pad_id, start_id=start, packed=packed)
    batch = {key: value.to(model.device) for key, value in batch.items()}
    inputs = READY[objective](model, batch)
    logits: torch.Tensor = model(**inputs).logits
    return logits.float()
