"""sft for encoder–decoders: the encoder reads the conversation so far, the decoder learns the answer and its end.

Every assistant turn that is to be learned makes a pair. The loss falls on the answer alone, so that held-out
perplexity is that of the target given the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe import gates
from llmpipe.artifact import Gate
from llmpipe.context import Context, Result
from llmpipe.data.formats import Conversation
from llmpipe.data.sources import read_conversations
from llmpipe.data.split import split_by_prompt
from llmpipe.errors import DataError, StageError
from llmpipe.training import arguments, denoising, flow, models, objectives, saved
from llmpipe.training.chat import render
from llmpipe.training.documents import framing
from llmpipe.training.packing import Batch, best_fit, padding_shares

if TYPE_CHECKING:
    from llmpipe.stages.sft import Settings


@dataclass(frozen=True)
class Pair:
    """What the encoder reads and what the decoder says, as ids."""

    source: list[int]
    target: list[int]

    @property
    def size(self) -> int:
        """The tokens of its longer side, which is what it takes of a row."""
        return max(len(self.source), len(self.target))


def encode(conversation: Conversation, model: PreTrainedModel, tokenizer: Tokenizer) -> list[Pair]:
    """Make a pair of each assistant turn that is to be learned.

    Raises:
        DataError: it is a plain text, which asks nothing.
    """
    if conversation.text is not None:
        message = "an encoder-decoder learns answers to questions, and this row is a plain text"
        raise DataError(message, hint="kind: pretrain, objective: denoising learns from plain text")
    opening, closing = framing(tokenizer)
    # a target begins as in pretraining: BART's with its begin token, T5's with none
    begins = [] if denoising.uses_sentinels(model.config.model_type) else opening
    pairs = []
    for turn, said in enumerate(conversation.messages):
        if said["role"] == "assistant" and said["train"]:
            rendered = render(conversation, tokenizer, turn, ask=True)
            asked = tokenizer(rendered, add_special_tokens=False)["input_ids"]
            answer = tokenizer(said["content"], add_special_tokens=False)["input_ids"]
            pairs.append(Pair(asked, [*begins, *answer, *closing]))
    return pairs


class PairRows(Dataset[Batch]):
    """Pairs in rows, a batch at a time."""

    def __init__(
        self, pairs: Sequence[Pair], groups: Sequence[Sequence[int]], model: PreTrainedModel, *, packed: bool
    ) -> None:
        self.pairs, self.groups, self.packed = pairs, groups, packed
        self.ids = {"pad_id": model.config.pad_token_id, "start_id": model.config.decoder_start_token_id}

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return a finished batch."""
        rows = [[self.pairs[place] for place in self.groups[index]] for index in indices]
        sources = [[np.array(pair.source) for pair in row] for row in rows]
        targets = [[np.array(pair.target) for pair in row] for row in rows]
        return denoising.collate(sources, targets, **self.ids, packed=self.packed)


def run(settings: Settings, ctx: Context) -> Result:
    """Load, pair, pack, train and save, as the sft stage does with a causal model."""
    from llmpipe.stages.sft import DEFAULTS, set_template

    assert settings.model is not None
    refuse_options(settings.trainer)
    model, tokenizer = models.load(settings.model, ctx, kinds=("seq2seq-lm",))
    models.mend_pad(model, tokenizer, ctx)
    set_template(settings, tokenizer, ctx)
    if settings.dropout is not None:
        models.set_dropout(model, settings.dropout, ctx)
    context = models.fitting_context(model, settings.context or models.context_length(model))
    if settings.packing:
        objectives.refuse_leaks(model, tokenizer, "denoising")
    train, held_out, facts = read_data(settings, model, tokenizer, ctx, context=context)
    args = arguments.build(
        TrainingArguments,
        ctx,
        settings,
        options=settings.trainer,
        stage_defaults=DEFAULTS,
        rows=len(train),
        row_tokens=context,
        measured=len(held_out) > 0,
        width=model.config.hidden_size,
    )
    ctx.explain(
        f"Supervised fine-tuning shows the model {facts['rows']:,} questions and has it learn the "
        f"{facts['learned_tokens']:,} tokens of their answers; {facts['held_out_rows']} are held out."
    )
    trainer = objectives.ObjectiveTrainer(
        objective="denoising",
        exp_of_loss="perplexity",
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out if len(held_out) else None,
        processing_class=tokenizer,
    )
    metrics = flow.fit(trainer, ctx, settings) | facts
    if ctx.rank:
        return Result(outputs=["model"], metrics={})
    folder = ctx.output("seq2seq-lm")
    models.save(trainer.model, tokenizer, folder)
    with ctx.checking():
        checks = checked(trainer, tokenizer, folder, train, mostly_cut=facts["too_long_rows"] > len(train.pairs) / 2)
    return Result(outputs=["model"], metrics=metrics, gates=checks)


def checked(
    trainer: objectives.ObjectiveTrainer, tokenizer: Tokenizer, folder: Path, train: PairRows, *, mostly_cut: bool
) -> list[Gate]:
    """Check what was learned from, and what was saved."""
    end = framing(tokenizer)[1][-1]
    share = sum(pair.target[-1] == end for pair in train.pairs) / len(train.pairs)
    return [
        gates.something_learned(sum(len(pair.target) for pair in train.pairs)),
        gates.end_is_learned(share, mostly_cut=mostly_cut),
        gates.pad_is_not_end(tokenizer.pad_token_id, (tokenizer.eos_token_id, tokenizer.sep_token_id)),
        *([objectives.gate(trainer.model, tokenizer, "denoising")] if train.packed else []),
        *saved.gates(trainer.model, tokenizer, folder, objective="denoising"),
        *trainer.replayed,
    ]


def refuse_options(options: Mapping[str, object]) -> None:
    """Refuse options of TRL's own, which nothing here would read.

    Raises:
        StageError: there is one.
    """
    own = options.keys() - {field.name for field in fields(TrainingArguments)}
    if own:
        message = f"trainer.{min(own)} is an option of TRL's, which does not train encoder-decoders"
        raise StageError(message, hint="leave it out")


def read_data(
    settings: Settings, model: PreTrainedModel, tokenizer: Tokenizer, ctx: Context, *, context: int
) -> tuple[PairRows, PairRows, dict[str, Any]]:
    """Return the rows to train on and the held-out ones, with counts of all that was left out."""
    assert settings.data is not None
    ctx.progress(doing="reading conversations")
    sides = split_by_prompt(read_conversations(settings.data, ctx), share=settings.held_out.share)
    encoded = [[pair for _, found in side for pair in encode(found, model, tokenizer)] for side in sides]
    kept = [fitting(pairs, context=context, too_long=settings.too_long) for pairs in encoded]
    dropped = sum(pair.size > context for pairs in encoded for pair in pairs)
    train, held_out = kept
    if dropped:
        done = "dropped" if settings.too_long == "drop" else "cut off"
        total = sum(map(len, encoded))
        ctx.say(f"{dropped:,} of {total:,} questions or answers are longer than {context} tokens: {done}")
    if not train:
        hint = "use a model with a longer context, or too_long: truncate"
        raise DataError(f"no question and answer fit into {context} tokens", hint=hint)
    sizes = [pair.size for pair in train]
    groups = best_fit(sizes, block=context) if settings.packing else [[place] for place in range(len(train))]
    facts = {
        "rows": len(train),
        "held_out_rows": len(held_out),
        "too_long_rows": dropped,
        "learned_tokens": sum(len(pair.target) for pair in train),
    } | padding_shares(sizes, rows=len(groups) if settings.packing else None, block=context)
    alone = [[place] for place in range(len(held_out))]
    rows = PairRows(train, groups, model, packed=settings.packing), PairRows(held_out, alone, model, packed=False)
    return *rows, facts


def fitting(pairs: Sequence[Pair], *, context: int, too_long: str) -> list[Pair]:
    """Drop what does not fit, or cut a question at its beginning and an answer at its end."""
    if too_long == "truncate":
        return [Pair(pair.source[-context:], pair.target[:context]) for pair in pairs]
    return [pair for pair in pairs if pair.size <= context]
