"""Text for objectives that need whole documents: kept as pieces that fit into a row, one or several to a row.

A document longer than a row is cut into pieces, each framed like a text of its own. What is drawn for a row (masks,
spans) comes from a generator that is seeded by the recipe's seed, the epoch and the row: it is another one each epoch,
and the same for any batch size, any number of processes, and after a resumption.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import TrainerCallback, TrainerState

from llmpipe.training.packing import IGNORED, Batch, best_fit, chunks, padding_shares, whole, write_tokens

Ids = np.ndarray[Any, np.dtype[np.int64]]


def framing(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text."""
    encoded = whole(tokenizer).encode("a", add_special_tokens=True)
    inner = [place for place, special in enumerate(encoded.special_tokens_mask) if not special]
    return encoded.ids[: inner[0]], encoded.ids[inner[-1] + 1 :]


def write_pieces(
    texts: Iterable[str], tokenizer: Tokenizer, path: Path, *, shortest: int, longest: int, words: bool
) -> dict[str, int]:
    """Write the ids of texts, unframed, in pieces of `shortest` to `longest` tokens; returns counts.

    Beside `path` lie `.lengths`, the tokens of each piece, and with `words` `.words`: for each token, whether it begins
    a word as the tokenizer cuts text into words.
    """
    found = {"documents": 0, "pieces": 0, "tokens": 0}
    lengths = array("I")

    def pieces() -> Iterator[list[int]]:
        with path.with_suffix(".words").open("wb") as starts:
            for ids, begins in _encoded(texts, tokenizer, words=words):
                found["documents"] += 1
                for first in range(0, len(ids), longest):
                    piece = ids[first : first + longest]
                    if len(piece) < shortest:
                        continue
                    np.asarray(begins[first : first + longest], dtype=np.bool_).tofile(starts)
                    lengths.append(len(piece))
                    yield piece

    found["pieces"], found["tokens"] = write_tokens(pieces(), path, vocab_size=len(tokenizer))
    np.frombuffer(lengths, dtype=np.uint32).tofile(path.with_suffix(".lengths"))
    return found


def _encoded(texts: Iterable[str], tokenizer: Tokenizer, *, words: bool) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield the ids of each text and, with `words`, whether each begins a word."""
    backend = whole(tokenizer)
    encode = backend.encode_batch if words else backend.encode_batch_fast  # the fast one does not know words
    for chunk in chunks(texts):
        for encoding in encode(chunk, add_special_tokens=False):
            numbers = encoding.word_ids if words else []
            begins = [place == 0 or word != numbers[place - 1] for place, word in enumerate(numbers)]
            yield encoding.ids, begins


class DocumentRows(Dataset[Batch]):
    """Pieces of documents in rows of at most `block` tokens, a batch at a time like `PackedTokens`.

    An objective says in `sizes` how many tokens a piece takes, and in `batch` what is trained on.
    """

    def __init__(
        self, path: Path, *, vocab_size: int, block: int, seed: int, packing: bool, max_tokens: int | None = None
    ) -> None:
        dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
        self.lengths = np.fromfile(path.with_suffix(".lengths"), dtype=np.uint32).astype(np.int64)
        ends = np.cumsum(self.lengths)
        if max_tokens is not None:  # at least one piece, even if that alone is longer
            self.lengths = self.lengths[: max(1, int(np.searchsorted(ends, max_tokens, side="right")))]
        self.starts = ends[: len(self.lengths)] - self.lengths
        self.tokens = _mapped(path, dtype)
        self.words = _mapped(path.with_suffix(".words"), np.bool_)
        self.seed, self.epoch, self.block, self.packing = seed, 0, block, packing
        sizes = self.sizes(self.lengths).tolist()
        groups = best_fit(sizes, block=block) if packing else [[piece] for piece in range(len(sizes))]
        self.order = np.fromiter(chain.from_iterable(groups), dtype=np.int64, count=len(sizes))
        self.bounds = np.cumsum([0, *map(len, groups)])
        self.facts = padding_shares(sizes, rows=len(groups) if packing else None, block=block)

    def sizes(self, lengths: Ids) -> Ids:
        """Return how many tokens of a row pieces of these lengths take."""
        raise NotImplementedError

    def batch(self, rows: list[list[int]], draws: list[np.random.Generator]) -> Batch:
        """Make a batch of rows, each a list of pieces and the generator to draw from."""
        raise NotImplementedError

    def ids(self, piece: int) -> Ids:
        """Return the tokens of a piece."""
        return self.tokens[self.starts[piece] :][: self.lengths[piece]].astype(np.int64)

    def word_starts(self, piece: int) -> Any:
        """Return whether each token of a piece begins a word."""
        return self.words[self.starts[piece] :][: self.lengths[piece]]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return a finished batch."""
        rows = [self.order[self.bounds[index] : self.bounds[index + 1]].tolist() for index in indices]
        return self.batch(rows, [np.random.default_rng([self.seed, self.epoch, index]) for index in indices])


def _mapped(path: Path, dtype: Any) -> Any:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)


class NewDraws(TrainerCallback):
    """Tells the training rows which epoch it is, so that each one draws anew."""

    def __init__(self, rows: DocumentRows) -> None:
        self.rows = rows

    def on_epoch_begin(self, _args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        """Note the epoch before its first batch is made, a resumed one's too."""
        self.rows.epoch = int((state.epoch or 0) + 1e-6)


class LoneRows(DocumentRows):
    """A document to a row for a causal model, framed as `packing.encode` does; the first token is not asked for."""

    def __init__(self, path: Path, *, opening: list[int], closing: list[int], pad_id: int, **options: Any) -> None:
        self.opening, self.closing, self.pad_id = opening, closing, pad_id
        super().__init__(path, **options)

    def sizes(self, lengths: Ids) -> Ids:
        """Count the frame in."""
        return lengths + len(self.opening) + len(self.closing)

    def batch(self, rows: list[list[int]], _draws: list[np.random.Generator]) -> Batch:
        """Return input_ids and labels, (batch, longest row); what is padded lies to the right, where none looks."""
        framed = [[np.array([*self.opening, *self.ids(piece), *self.closing]) for piece in row] for row in rows]
        labels = [[np.array([IGNORED, *document[1:]]) for document in row] for row in framed]
        return {"input_ids": joined(framed, self.pad_id), "labels": joined(labels, IGNORED)}


def joined(rows: Sequence[Sequence[Ids]], fill: int) -> torch.Tensor:
    """Join the documents of each row and pad at the right: → (batch, longest row)."""
    lines = [np.concatenate(row) for row in rows]
    padded = np.full((len(lines), max(map(len, lines))), fill, dtype=np.int64)
    for number, line in enumerate(lines):
        padded[number, : len(line)] = line
    return torch.from_numpy(padded)


def places(rows: Sequence[Sequence[Ids]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of its document and the position in it for each token, both (batch, longest row).

    The padding of a row is a document of its own, so that no token is left with nothing to look at.
    """
    numbers = [[np.full(len(document), number) for number, document in enumerate(row)] for row in rows]
    positions = [[np.arange(len(document)) for document in row] for row in rows]
    return joined(numbers, PADDING), joined(positions, 0)


PADDING = 2**31 - 1
"""The document number of padding."""


def same_document(seeing: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Compare document numbers: (batch, q), (batch, k) → a mask for attention (batch, 1, q, k), True where one sees."""
    return (seeing[:, :, None] == seen[:, None, :])[:, None]
