"""Denoising: an encoder sees a text with parts missing, and a decoder says what was there.

T5 and its kin learn span corruption (arXiv:1910.10683, section 3.1.4): each missing span leaves a numbered sentinel,
and the decoder says each sentinel and its span. The others learn BART's text infilling (arXiv:1910.13461): each missing
span leaves one mask, which may stand for nothing at all, and the decoder says the whole text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.modeling_outputs import BaseModelOutput

from llmpipe.training.documents import PADDING, DocumentRows, Ids, framing, joined, places, same_document
from llmpipe.training.packing import IGNORED, Batch

SENTINELS = 100
SENTINEL = "<extra_id_{}>"
"""T5's names for its sentinels, and how many it has."""

SPAN_SHARE, SPAN_TOKENS = 0.15, 3
INFILL_SHARE, INFILL_TOKENS = 0.3, 3


def uses_sentinels(model_type: str) -> bool:
    """Tell T5 and its kin from the rest by the architecture's name."""
    return "t5" in model_type or model_type == "switch_transformers"


def sentinel_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the sentinels that a tokenizer has, in their order."""
    vocabulary = tokenizer.get_vocab()
    names = (SENTINEL.format(number) for number in range(SENTINELS))
    return [vocabulary[name] for name in names if name in vocabulary]


class Noise(Protocol):
    """What takes parts of a text away."""

    def source_tokens(self, lengths: Ids) -> Ids:
        """Return the most tokens that the encoder sees of texts of these lengths, unframed."""
        ...

    def apply(self, ids: Ids, draw: np.random.Generator) -> tuple[Ids, Ids]:
        """Return what the encoder sees and what the decoder says, unframed."""
        ...


@dataclass(frozen=True)
class SpanCorruption:
    """T5's noise: 15 % of the tokens, in spans of 3 on average; how many of either depends on the length alone."""

    sentinels: Ids

    def counts(self, lengths: Ids) -> tuple[Ids, Ids]:
        """Return how many tokens are taken from texts of these lengths, and in how many spans."""
        taken = np.clip(np.round(lengths * SPAN_SHARE).astype(np.int64), 1, lengths - 1)
        spans = np.maximum(1, np.round(taken / SPAN_TOKENS).astype(np.int64))
        return taken, np.minimum(spans, lengths - taken)

    def source_tokens(self, lengths: Ids) -> Ids:
        """Return what is left and a sentinel for each span."""
        taken, spans = self.counts(lengths)
        return lengths - taken + spans

    def apply(self, ids: Ids, draw: np.random.Generator) -> tuple[Ids, Ids]:
        """Take spans away; like T5's own code, a text begins with tokens that stay and ends with some that go."""
        taken, spans = (int(count) for count in self.counts(np.array(len(ids))))
        ends = np.cumsum(np.stack([_parts(len(ids) - taken, spans, draw), _parts(taken, spans, draw)], 1).ravel())
        source, target, first = [], [], 0
        for number, (stays, goes) in enumerate(ends.reshape(-1, 2).tolist()):
            source += [*ids[first:stays], self.sentinels[number]]
            target += [self.sentinels[number], *ids[stays:goes]]
            first = goes
        return np.array(source), np.array(target)


def _parts(total: int, count: int, draw: np.random.Generator) -> Ids:
    """Divide a total into so many parts of at least 1, each division as likely as any other."""
    cuts = np.sort(draw.choice(total - 1, count - 1, replace=False)) + 1 if count > 1 else np.zeros(0, np.int64)
    return np.diff(np.concatenate([[0], cuts, [total]]))


@dataclass(frozen=True)
class Infilling:
    """BART's noise: 30 % of the tokens, in spans whose lengths are Poisson with mean 3; an empty one adds a mask."""

    mask_id: int

    def source_tokens(self, lengths: Ids) -> Ids:
        """Return the lengths: masks never outnumber the tokens that they stand for."""
        return lengths

    def apply(self, ids: Ids, draw: np.random.Generator) -> tuple[Ids, Ids]:
        """Put a mask for each span; returns the text with masks, and the whole text."""
        left = max(1, round(len(ids) * INFILL_SHARE))
        spans: list[int] = []
        while left and len(spans) < max(1, round(len(ids) * INFILL_SHARE)):
            spans.append(min(left, int(draw.poisson(INFILL_TOKENS))))
            left -= spans[-1]
        kept = len(ids) - sum(spans)
        places = np.sort(draw.integers(0, kept + 1, len(spans)))  # how many kept tokens stand before each span
        source, first, before = [], 0, 0
        for place, span in zip(places.tolist(), spans, strict=True):
            source += [*ids[first : first + place - before], self.mask_id]
            first, before = first + place - before + span, place
        return np.array([*source, *ids[first:]]), ids


def noise_for(model: PreTrainedModel, tokenizer: Tokenizer) -> Noise:
    """Return the noise that a model's family was made for."""
    if uses_sentinels(model.config.model_type):
        return SpanCorruption(np.array(sentinel_ids(tokenizer)))
    return Infilling(tokenizer.mask_token_id)


def longest_piece(noise: Noise, tokenizer: Tokenizer, *, block: int) -> int:
    """Return how many tokens of a text fit into the encoder and the decoder at once, its frame counted in."""
    room = block - sum(map(len, framing(tokenizer)))
    if isinstance(noise, Infilling):
        return room
    lengths = np.arange(2, 2 * max(room, 2))
    fits = noise.source_tokens(lengths) <= room
    if isinstance(noise, SpanCorruption):
        fits &= noise.counts(lengths)[1] <= len(noise.sentinels)
    return int(lengths[fits].max(initial=0))


class DenoisingRows(DocumentRows):
    """Documents with parts missing, for an encoder–decoder."""

    def __init__(self, path: Path, model: PreTrainedModel, tokenizer: Tokenizer, **options: Any) -> None:
        self.noise = noise_for(model, tokenizer)
        self.opening, self.closing = framing(tokenizer)
        self.pad_id, self.start_id = tokenizer.pad_token_id, model.config.decoder_start_token_id
        super().__init__(path, vocab_size=len(tokenizer), **options)

    def sizes(self, lengths: Ids) -> Ids:
        """Count what the encoder sees; of spans, the decoder never says more."""
        return self.noise.source_tokens(lengths) + len(self.opening) + len(self.closing)

    def batch(self, rows: list[list[int]], draws: list[np.random.Generator]) -> Batch:
        """Corrupt every piece of every row."""
        sources: list[list[Ids]] = []
        targets: list[list[Ids]] = []
        opening = [] if isinstance(self.noise, SpanCorruption) else self.opening  # a target begins with a sentinel
        for row, draw in zip(rows, draws, strict=True):
            pairs = [self.noise.apply(self.ids(piece), draw) for piece in row]
            sources.append([np.array([*self.opening, *source, *self.closing]) for source, _ in pairs])
            targets.append([np.array([*opening, *target, *self.closing]) for _, target in pairs])
        return collate(sources, targets, pad_id=self.pad_id, start_id=self.start_id, packed=self.packing)


def collate(sources: list[list[Ids]], targets: list[list[Ids]], *, pad_id: int, start_id: int, packed: bool) -> Batch:
    """Join rows of documents, each a source and its target, in the same order.

    Returns input_ids (batch, source), decoder_input_ids and labels (batch, target), and what tells documents apart:
    the number of each token's document on either side, or a plain mask where each row has one.
    """
    shifted = [[np.array([start_id, *target[:-1]]) for target in row] for row in targets]
    batch = {
        "input_ids": joined(sources, pad_id),
        "decoder_input_ids": joined(shifted, pad_id),
        "labels": joined(targets, IGNORED),
    }
    documents = places(sources)[0]
    if packed:
        return batch | {"documents": documents, "target_documents": places(targets)[0]}
    return batch | {"attention_mask": (documents != PADDING).long()}


def ready(model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
    """Turn a batch into what an encoder–decoder's forward takes.

    For packed rows the encoder runs here, for forward has one mask for the encoder's attention to itself and the
    decoder's to it, and these differ in shape. T5's relative positions need nothing to begin anew in each document.
    """
    if "documents" not in batch:
        return batch | {"use_cache": False}
    source, target = batch["documents"], batch["target_documents"]
    encoded = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=same_document(source, source))
    return {
        "encoder_outputs": BaseModelOutput(last_hidden_state=encoded.last_hidden_state),
        "attention_mask": same_document(target, source),
        "decoder_input_ids": batch["decoder_input_ids"],
        "decoder_attention_mask": same_document(target, target).tril(),
        "labels": batch["labels"],
        "use_cache": False,
    }
