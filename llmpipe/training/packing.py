"""Documents → rows of tokens that fill the context, with nothing leaking from one document into the next.

transformers makes SDPA attention block-diagonal where `position_ids` restart, provided that no attention mask is
given and the cache is off; both hold here and in `flow`, and tests perturb a neighbour to prove it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase as Tokenizer

Batch = dict[str, torch.Tensor]
IGNORED = -100
CHUNK_TEXTS = 512
CHUNK_CHARACTERS = 1_000_000
"""How many texts are encoded at once: an encoding takes a hundred bytes for each token."""
UNPACKED_BATCH = 8  # rows; the size that `padding_shares` compares with


def encode(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield the ids of each document as bos + text + eos."""
    opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    closing = [tokenizer.eos_token_id]
    # the rust tokenizer itself: the wrapper around it also builds offsets and masks, at twice the time
    backend = whole(tokenizer)
    for chunk in chunks(texts):
        for encoding in backend.encode_batch_fast(chunk, add_special_tokens=False):
            yield opening + encoding.ids + closing


def chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Cut texts into lists to be encoded at once; no text is cut."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == CHUNK_TEXTS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def whole(tokenizer: Tokenizer) -> Any:
    """Return the rust tokenizer, set to cut off and pad nothing: BERT's own file has it do both at 128 tokens."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer.backend_tokenizer


def write_tokens(documents: Iterable[list[int]], path: Path, *, vocab_size: int) -> tuple[int, int]:
    """Write the ids of all documents one after the other; returns (documents, tokens).

    The file appears whole: another process that waits for it never reads a part.
    """
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    temporary = path.with_suffix(".tmp")
    n_documents = n_tokens = 0
    with temporary.open("wb") as file:
        for ids in documents:
            np.asarray(ids, dtype=dtype).tofile(file)
            n_documents, n_tokens = n_documents + 1, n_tokens + len(ids)
    temporary.replace(path)
    return n_documents, n_tokens


def wait_for(path: Path, *, timeout_s: float = 3600) -> None:
    """Wait until rank 0 has written a file (see `write_tokens`)."""
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} was not written within {timeout_s:.0f} s")
        time.sleep(0.1)


class PackedTokens(Dataset[Batch]):
    """A token file as rows of `block` tokens; a document that reaches the end of a row goes on in the next.

    Read through the page cache, so that a corpus larger than memory trains too. Rows are fetched a batch at a time:
    `__getitems__` returns the finished batch, and the collator has nothing left to do.
    """

    def __init__(
        self,
        path: Path,
        *,
        block: int,
        vocab_size: int,
        bos: int | None,
        eos: int,
        documents: int,
        max_tokens: int | None = None,
    ) -> None:
        dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
        self.tokens = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
        self.tokens = self.tokens[:max_tokens]
        self.block, self.bos, self.eos = block, bos, eos
        self.cuts = documents > 1

    def __len__(self) -> int:
        """Return the number of full rows; the remainder, less than a row, is not trained on."""
        return len(self.tokens) // self.block

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return input_ids, labels (batch, block) and, where documents meet in a row, position_ids."""
        rows = np.stack([self.tokens[i * self.block : (i + 1) * self.block] for i in indices]).astype(np.int64)
        ids = torch.from_numpy(rows)
        if not self.cuts:
            return {"input_ids": ids, "labels": ids}
        positions = positions_from(self._starts(ids))
        # the first token of a document is not to be guessed from the document before it
        labels = ids.masked_fill(positions == 0, IGNORED)
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def _starts(self, ids: torch.Tensor) -> torch.Tensor:
        """Find the documents' first tokens, (batch, block): the begin token, or what follows an end token.

        Where one token is both (GPT-2), only the second of two in a row begins a document: the first ends one.
        """
        if self.bos is not None and self.bos != self.eos:
            return ids == self.bos
        starts = torch.zeros_like(ids, dtype=torch.bool)
        starts[:, 1:] = (ids[:, :-1] == self.eos) & ((ids[:, 1:] == self.bos) | (self.bos is None))
        return starts


def positions_from(starts: torch.Tensor) -> torch.Tensor:
    """Count positions anew from each start: (batch, seq) of bool → (batch, seq) of int."""
    index = torch.arange(starts.shape[-1]).expand_as(starts)
    return index - torch.where(starts, index, 0).cummax(dim=-1).values


def best_fit(lengths: Sequence[int], *, block: int) -> list[list[int]]:
    """Put items into as few rows of `block` as best-fit decreasing finds; returns item indices by row.

    Free space is looked up by bucket, so that it takes O(n · block) at worst and near O(n) in practice.
    """
    rows: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(block + 1)]
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        size = lengths[item]
        space = next((space for space in range(size, block + 1) if by_space[space]), None)
        if space is None:
            row, space = len(rows), block
            rows.append([])
        else:
            row = by_space[space].pop()
        rows[row].append(item)
        by_space[space - size].append(row)
    return rows


def padding_shares(lengths: Sequence[int], *, rows: int | None, block: int) -> dict[str, float]:
    """Return the share of padding in rows that hold items of these lengths.

    `rows` of `block` tokens are what the items were packed into; None where each has a row of its own. Beside it stands
    the share without packing: in random batches of 8 items, each padded to its longest.
    """
    total = sum(lengths)
    shuffled = np.random.default_rng(0).permutation(np.asarray(lengths, dtype=np.int64))
    batches = [shuffled[first : first + UNPACKED_BATCH] for first in range(0, len(shuffled), UNPACKED_BATCH)]
    unpacked = 1 - total / max(1, sum(int(batch.max()) * len(batch) for batch in batches))
    if rows is None:
        return {"padding_share": unpacked}
    return {"padding_share": 1 - total / max(1, rows * block), "padding_share_unpacked": unpacked}


def identity(batch: Batch) -> Batch:
    """Collate nothing: `PackedTokens` fetches whole batches."""
    return batch
