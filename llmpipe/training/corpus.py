"""The text of a pretrain stage → rows: tokenised once, on rank 0, into files that every process maps."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.artifact import read_json, write_json
from llmpipe.context import Context
from llmpipe.data.sources import read_texts, split_texts
from llmpipe.errors import DataError
from llmpipe.training.denoising import DenoisingRows, longest_piece, noise_for
from llmpipe.training.documents import DocumentRows, LoneRows, framing, write_pieces
from llmpipe.training.masked import MaskedRows
from llmpipe.training.packing import PackedTokens, encode, padding_shares, wait_for, write_tokens

if TYPE_CHECKING:
    from llmpipe.stages.pretrain import Settings

Rows = PackedTokens | DocumentRows


def read_data(
    settings: Settings, model: PreTrainedModel, tokenizer: Tokenizer, ctx: Context
) -> tuple[Rows, Rows, dict[str, Any]]:
    """Return training rows, held-out rows, and counts.

    What is hidden in held-out rows depends on the row alone, so that evaluations compare, of other runs too.
    """
    facts_file = ctx.dir / "tokens.json"
    runs_on = settings.objective == "causal" and settings.packing
    if ctx.rank == 0 and not facts_file.exists():
        write_json(facts_file, _tokenise(settings, model, tokenizer, ctx, runs_on=runs_on))
    wait_for(facts_file)
    facts: dict[str, Any] = read_json(facts_file) or {}
    limit = settings.held_out.max_tokens
    if runs_on:
        special = {"vocab_size": len(tokenizer), "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}

        def packed(name: str, documents: int, max_tokens: int | None) -> PackedTokens:
            options: dict[str, Any] = {**special, "documents": documents, "max_tokens": max_tokens}
            return PackedTokens(ctx.dir / f"{name}.tokens", block=settings.context, **options)

        return packed("train", facts["documents"], None), packed("held_out", facts["held_out_documents"], limit), facts
    train = _document_rows(settings, model, tokenizer, ctx.dir / "train.tokens", seed=ctx.seed)
    held_out = _document_rows(settings, model, tokenizer, ctx.dir / "held_out.tokens", seed=0, max_tokens=limit)
    return train, held_out, facts | train.facts


def _document_rows(
    settings: Settings, model: PreTrainedModel, tokenizer: Tokenizer, path: Path, **options: Any
) -> DocumentRows:
    options |= {"block": settings.context, "packing": settings.packing}
    if settings.objective == "masked":
        return MaskedRows(path, tokenizer, whole_word=settings.whole_word, **options)
    if settings.objective == "denoising":
        return DenoisingRows(path, model, tokenizer, **options)
    opening, closing = _causal_frame(tokenizer)
    options |= {"vocab_size": len(tokenizer), "pad_id": tokenizer.pad_token_id}
    return LoneRows(path, opening=opening, closing=closing, **options)


def _causal_frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id], [tokenizer.eos_token_id]


def _tokenise(
    settings: Settings, model: PreTrainedModel, tokenizer: Tokenizer, ctx: Context, *, runs_on: bool
) -> dict[str, Any]:
    """Write train.tokens, held_out.tokens, held_out.jsonl and what lies beside them; returns their counts.

    Where `runs_on`, the text is one stream of documents, of which one goes on in the next row.
    """
    assert settings.data is not None
    ctx.progress(doing="tokenising")
    train, held_out = split_texts(read_texts(settings.data, ctx), share=settings.held_out.share)
    if runs_on:
        facts = _stream(train, held_out, settings, tokenizer, ctx)
    else:
        facts = _pieces(train, held_out, settings, model, tokenizer, ctx)
    if held_out:
        with (ctx.dir / "held_out.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in held_out)
    held_bytes = sum(len(text.encode("utf-8")) for text in held_out)
    tokens = facts["held_out_tokens"]
    return facts | {
        "held_out_documents": len(held_out),
        "bytes_per_token": held_bytes / tokens if tokens else None,
    }


def _stream(
    train: Iterable[str], held_out: list[str], settings: Settings, tokenizer: Tokenizer, ctx: Context
) -> dict[str, Any]:
    size, block = len(tokenizer), settings.context
    lengths = array("I")  # of what each document would take in rows of its own

    def counted() -> Iterator[list[int]]:
        for ids in encode(train, tokenizer):
            lengths.extend([block] * (len(ids) // block) + [len(ids) % block][: len(ids) % block])
            yield ids

    documents, tokens = write_tokens(counted(), ctx.dir / "train.tokens", vocab_size=size)
    if tokens < block:
        message = f"the text has {tokens} tokens, less than one row of {block}"
        raise DataError(message, hint=f"lower context to {max(1, tokens // 2)} or less, or add text")
    _, held_tokens = write_tokens(encode(held_out, tokenizer), ctx.dir / "held_out.tokens", vocab_size=size)
    if held_out and held_tokens < block:
        ctx.say(f"held-out text has {held_tokens} tokens, less than a row; raise held_out.share to measure anything")
    unpacked = padding_shares(lengths, rows=None, block=block)["padding_share"]
    padding = {"padding_share": 0.0, "padding_share_unpacked": unpacked}
    return {"documents": documents, "tokens_in_corpus": tokens, "held_out_tokens": held_tokens} | padding


def _pieces(
    train: Iterable[str],
    held_out: list[str],
    settings: Settings,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    ctx: Context,
) -> dict[str, Any]:
    shortest, longest = 1, settings.context
    if settings.objective == "denoising":
        shortest, longest = 2, longest_piece(noise_for(model, tokenizer), tokenizer, block=longest)
    else:
        frame = _causal_frame(tokenizer) if settings.objective == "causal" else framing(tokenizer)
        longest -= sum(map(len, frame))
    if longest < shortest:
        raise DataError(f"context {settings.context} has no room for text between special tokens", hint="context: 16")
    options: dict[str, Any] = {"shortest": shortest, "longest": longest, "words": settings.whole_word}
    found = write_pieces(train, tokenizer, ctx.dir / "train.tokens", **options)
    if not found["pieces"]:
        raise DataError("the text has nothing to learn from", hint="add text")
    held = write_pieces(held_out, tokenizer, ctx.dir / "held_out.tokens", **options)
    counts = {"documents": found["documents"], "pieces": found["pieces"], "tokens_in_corpus": found["tokens"]}
    return counts | {"held_out_tokens": held["tokens"]}
