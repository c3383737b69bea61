"""Masked language modelling: some tokens are hidden, and guessed from both sides (BERT, arXiv:1810.04805).

transformers' DataCollatorForLanguageModeling is not used. It finds special tokens with a Python loop over every id; it
draws from one generator, which a resumed run cannot find again; and for whole words it goes by gaps between offsets,
of which a byte-level tokenizer has none, and leaves out the 80/10/10 rule (5.24).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.training.documents import PADDING, DocumentRows, Ids, framing, joined, places, same_document
from llmpipe.training.models import position_offset
from llmpipe.training.packing import IGNORED, Batch

SHARE = 0.15
HIDDEN, SWAPPED = 0.8, 0.1  # of the tokens to guess; the rest stay as they are


@dataclass(frozen=True)
class Masking:
    """What is put in place of the tokens to guess."""

    mask_id: int
    ordinary: Ids
    """The ids that are not special, from which other tokens are drawn."""
    whole_word: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, whole_word: bool) -> Masking:
        """Read a tokenizer that has a mask token."""
        special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
        ordinary = np.array([token for token in range(len(tokenizer)) if token not in special])
        return cls(tokenizer.mask_token_id, ordinary, whole_word)

    def apply(self, ids: Ids, word_starts: Any, draw: np.random.Generator) -> tuple[Ids, Ids]:
        """Choose 15 % of the tokens, or the tokens of 15 % of the words: → ids to show, labels, both (tokens,).

        Of those chosen, 80 % are hidden, 10 % swapped for another token, 10 % left. At least one is chosen, so that
        every document has something to say.
        """
        words = np.cumsum(word_starts) - word_starts[0] if self.whole_word else np.arange(len(ids))
        chance = draw.random(words[-1] + 1)
        chosen = (chance < max(SHARE, np.nextafter(chance.min(), 1)))[words]
        fate = draw.random(len(ids))
        shown = np.where(chosen & (fate < HIDDEN), self.mask_id, ids)
        swapped = chosen & (fate >= HIDDEN) & (fate < HIDDEN + SWAPPED)
        shown = np.where(swapped, draw.choice(self.ordinary, len(ids)), shown)
        return shown, np.where(chosen, ids, IGNORED)


class MaskedRows(DocumentRows):
    """Documents with masks, for a model that sees both sides."""

    def __init__(self, path: Path, tokenizer: Tokenizer, *, whole_word: bool, **options: Any) -> None:
        self.opening, self.closing = framing(tokenizer)
        self.masking = Masking.of(tokenizer, whole_word=whole_word)
        self.pad_id = tokenizer.pad_token_id
        super().__init__(path, vocab_size=len(tokenizer), **options)

    def sizes(self, lengths: Ids) -> Ids:
        """Count the frame in."""
        return lengths + len(self.opening) + len(self.closing)

    def batch(self, rows: list[list[int]], draws: list[np.random.Generator]) -> Batch:
        """Mask every piece of every row, and frame it."""
        shown: list[list[Ids]] = []
        labels: list[list[Ids]] = []
        for row, draw in zip(rows, draws, strict=True):
            masked = [self.masking.apply(self.ids(piece), self.word_starts(piece), draw) for piece in row]
            shown.append([np.array([*self.opening, *ids, *self.closing]) for ids, _ in masked])
            silent = [IGNORED] * len(self.opening), [IGNORED] * len(self.closing)
            labels.append([np.array([*silent[0], *asked, *silent[1]]) for _, asked in masked])
        return collate(shown, pad_id=self.pad_id, packed=self.packing) | {"labels": joined(labels, IGNORED)}


def collate(rows: list[list[Ids]], *, pad_id: int, packed: bool) -> Batch:
    """Join rows of documents: → input_ids, and what tells them apart, all (batch, longest row)."""
    ids = joined(rows, pad_id)
    documents, positions = places(rows)
    if packed:
        return {"input_ids": ids, "documents": documents, "position_ids": positions}
    return {"input_ids": ids, "attention_mask": (documents != PADDING).long()}


def ready(model: PreTrainedModel, batch: Batch) -> dict[str, Any]:
    """Turn a batch into what a masked model's forward takes.

    transformers 5.24 passes a four-dimensional mask on as it is, to all layers alike; a model that also has layers
    which see only what is near (ModernBERT) takes a mapping of masks instead. Positions alone do not part documents
    in these models, as they do in causal ones.
    """
    if "documents" not in batch:
        return dict(batch)
    inputs: dict[str, Any] = {key: value for key, value in batch.items() if key != "documents"}
    mask: Any = same_document(batch["documents"], batch["documents"])
    if "sliding_attention" in (getattr(model.config, "layer_types", None) or ()):
        index = torch.arange(mask.shape[-1], device=mask.device)
        near = (index[:, None] - index).abs() <= model.config.sliding_window
        mask = {"full_attention": mask, "sliding_attention": mask & near}
    inputs["attention_mask"] = mask
    inputs["position_ids"] = batch["position_ids"] + position_offset(model)
    return inputs
