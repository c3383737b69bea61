"""Tokens for several conversations at once: one thread decodes, requests join and leave between two tokens.

What a row gets does not depend on its neighbours: a prompt is read alone, padding is only ever at the left of the
kept keys and masked, and each row draws from a generator of its own.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

from llmpipe.evaluation.kept import KEPT, KeptCaches, Layers
from llmpipe.training.models import accepts_positions

MOST_ROWS = 32
"""How many conversations are decoded together; the others wait in the order in which they came."""
MOST_JOINING = 4
"""How many prompts are read between two tokens of the others, who wait for it."""
End = Literal["stop", "length"]


@dataclass
class Request:
    """A prompt to continue by `room` tokens at most; `out` gets token ids, then how the answer ended, or an error."""

    ids: Sequence[int]
    room: int
    temperature: float
    top_p: float = 1.0
    seed: int | None = None
    out: SimpleQueue[int | End | Exception] = field(default_factory=SimpleQueue)
    is_cancelled: bool = False
    """Set by whoever asked and wants no more."""
    cached: int = 0
    """How many tokens of the prompt were known from before; set by the decoder."""


@dataclass
class _Row:
    request: Request
    ids: list[int]
    generator: torch.Generator
    finish: End | None = None

    @property
    def known(self) -> int:
        """How many tokens the keys are of: all but the last, which is read next."""
        return len(self.ids) - 1


class Decoder:
    """Decodes with one model in one thread; `ends` are the tokens that end an answer.

    Models whose cache is more than keys and values of all tokens (sliding windows, recurrent states) cannot be cut to
    a prefix or joined to a batch: their answers are given one at a time, and nothing is kept.
    """

    def __init__(self, model: PreTrainedModel, ends: Iterable[int], *, keep: int = KEPT, rows: int = MOST_ROWS) -> None:
        self.model, self.ends, self.kept = model, frozenset(ends), KeptCaches(keep)
        takes = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in takes else "past_key_values"  # as transformers 5.23 has it
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self.uses_cache = self.cache_name in takes
        self.is_plain = self.uses_cache and self._is_plain()
        self.most_rows = rows if self.is_plain and accepts_positions(model) else 1
        self.waiting: SimpleQueue[Request | None] = SimpleQueue()
        self.rows: list[_Row] = []
        self.cache = self._cache([])
        self.is_closed = False
        self.thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self.thread.start()

    def ask(self, request: Request) -> None:
        """Put a request in line."""
        self.waiting.put(request)
        if self.is_closed:
            request.out.put(RuntimeError("the model was closed"))

    def close(self) -> None:
        """End the thread; answers under way end with an error."""
        self.is_closed = True
        self.waiting.put(None)
        self.thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            while not self.is_closed:
                try:
                    self._leave()
                    self._join()
                    if self.rows:
                        self._step()
                except Exception as error:  # out of memory or a fault in a model's code ends these answers, no others
                    self._fail(error)
        self._fail(closed := RuntimeError("the model was closed"))
        while not self.waiting.empty():
            if request := self.waiting.get():
                request.out.put(closed)
        self.kept.entries.clear()

    def _fail(self, error: Exception) -> None:
        for row in self.rows:
            row.request.out.put(error)
        self.rows, self.cache = [], self._cache([])

    def _join(self) -> None:
        """Read the prompts that are next in line and put them beside the others."""
        came: list[tuple[_Row, Layers]] = []
        while len(came) < MOST_JOINING and len(self.rows) + len(came) < self.most_rows:
            try:
                request = self.waiting.get(block=not self.rows and not came)
            except Empty:
                break
            if request is None:
                break
            if request.is_cancelled:
                continue
            try:
                came.append(self._begun(request))
            except Exception as error:  # as above: this answer's alone
                request.out.put(error)
        if came:
            parts = [*self._parts(range(len(self.rows))), *(layers for _, layers in came)]
            self.rows += [row for row, _ in came]
            self._set(parts)

    def _begun(self, request: Request) -> tuple[_Row, Layers]:
        """Read a prompt and give the first token of its answer."""
        ids = list(request.ids)
        request.cached, layers = self.kept.longest(ids)
        cache = self._cache(layers)
        generator = torch.Generator(self.model.device)
        generator.seed() if request.seed is None else generator.manual_seed(request.seed)
        row = _Row(request, ids, generator)
        unread = torch.tensor([ids[request.cached :]], device=self.model.device)
        self._give(row, self._read(unread, cache)[0])
        if not self.is_plain:
            self.cache = cache
        return row, _layers(cache) if self.is_plain else []

    def _step(self) -> None:
        """Give each row its next token."""
        device = self.model.device
        ids = torch.tensor([row.ids[-1:] if self.uses_cache else row.ids for row in self.rows], device=device)
        where: dict[str, Tensor] = {}
        if len(self.rows) > 1:
            known = torch.tensor([[row.known] for row in self.rows], device=device)
            width = self.cache.get_seq_length() + 1
            mask = torch.arange(width, device=device) >= width - 1 - known
            where = {"attention_mask": mask.long(), "position_ids": known}
        for row, scores in zip(self.rows, self._read(ids, self.cache, **where), strict=True):
            self._give(row, scores)

    def _read(self, ids: Tensor, cache: DynamicCache, **where: Tensor) -> Tensor:
        """Return the logits after the last of ids, (batch, seq), as (batch, vocabulary)."""
        kept = {self.cache_name: cache} if self.uses_cache else {}
        out = self.model(input_ids=ids, use_cache=self.uses_cache, **kept, **where, **self.options)
        logits: Tensor = out.logits[:, -1]
        return logits

    def _give(self, row: _Row, logits: Tensor) -> None:
        """Draw a row's next token from logits, (vocabulary), and hand it out."""
        request = row.request
        if request.temperature == 0:
            token = int(logits.argmax())
        else:
            warp = LogitsProcessorList([TemperatureLogitsWarper(float(request.temperature))])
            if request.top_p < 1:
                warp.append(TopPLogitsWarper(request.top_p))
            scores: Any = warp(None, logits[None].float())  # neither looks at the ids
            token = int(torch.multinomial(scores[0].softmax(-1), 1, generator=row.generator))
        row.ids.append(token)
        if token in self.ends:
            row.finish = "stop"
        else:
            request.out.put(token)
            if len(row.ids) - len(request.ids) >= request.room:
                row.finish = "length"
        if row.finish:
            request.out.put(row.finish)

    def _leave(self) -> None:
        """Take out the rows that are finished or not wanted any more, and keep what was computed for them."""
        gone = [place for place, row in enumerate(self.rows) if row.finish or row.request.is_cancelled]
        if not gone:
            return
        for place, layers in zip(gone, self._parts(gone), strict=True):
            row = self.rows[place]
            if layers and self.kept.most:
                self.kept.add(row.ids[:-1], layers)
        stay = [place for place in range(len(self.rows)) if place not in gone]
        parts = self._parts(stay)
        self.rows = [self.rows[place] for place in stay]
        self._set(parts)

    def _parts(self, places: Iterable[int]) -> list[Layers]:
        """Return the keys and values of single rows, without padding."""
        if not self.is_plain:
            return [[] for _ in places]
        whole = _layers(self.cache)
        if len(self.rows) == 1:
            return [whole for _ in places]
        return [
            [(_row(keys, place, size), _row(values, place, size)) for keys, values in whole]
            for place in places
            if (size := self.rows[place].known)
        ]

    def _set(self, parts: list[Layers]) -> None:
        """Make the cache of all rows from those of each, padded on the left."""
        if not self.is_plain:
            if not parts:
                self.cache = self._cache([])
            return
        longest = max((row.known for row in self.rows), default=0)
        joined = [
            (_stacked([keys for keys, _ in layer], longest), _stacked([values for _, values in layer], longest))
            for layer in zip(*parts, strict=True)
        ]
        self.cache = self._cache(joined)

    @torch.inference_mode()
    def _is_plain(self) -> bool:
        """Tell from one token whether the model's cache is keys and values of all tokens, and nothing else."""
        cache = self._cache([])
        self._read(torch.zeros((1, 1), dtype=torch.long, device=self.model.device), cache)
        plain = [type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers]
        return bool(plain) and all(plain) and cache.is_croppable

    def _cache(self, layers: Layers) -> DynamicCache:
        return DynamicCache(layers) if layers else DynamicCache(config=self.model.config)


def _row(batch: Tensor, place: int, size: int) -> Tensor:
    """Take one row out of (batch, heads, seq, head size), without its padding."""
    return batch[place : place + 1, :, -size:].clone()


def _stacked(rows: list[Tensor], longest: int) -> Tensor:
    """Stack (1, heads, seq, size) to (batch, heads, longest, size)."""
    if len(rows) == 1:
        return rows[0]
    return torch.cat([torch.nn.functional.pad(row, (0, 0, longest - row.shape[2], 0)) for row in rows])


def _layers(cache: DynamicCache) -> Layers:
    return [(layer.keys, layer.values) for layer in cache.layers]
