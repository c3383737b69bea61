"""sft: teaches a model to answer, from examples of conversations. Reads a model and chats; writes `model/`.

    chat: {kind: sft, model: base, data: {path: chat.jsonl}, trainer: {learning_rate: 2e-5, num_train_epochs: 3}}

With `lora: {}` the model stays as it is, an adapter on it is trained, and `adapter/` is written.

alpaca, sharegpt, messages, prompt/completion, question/answer, dolly and plain text rows are told apart by their
columns. The loss falls on the assistant's tokens alone; packed conversations do not see each other. An encoder-decoder
reads what leads to an answer with its encoder, and its decoder learns the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from llmpipe import lora as adapter_options
from llmpipe.context import Context, Result
from llmpipe.settings import (
    TRAINER_RESERVED,
    Accepts,
    Artifact,
    Count,
    DataSources,
    FolderSource,
    Passthrough,
    SupervisedSettings,
)

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmpipe.artifact import Gate
    from llmpipe.training.chat import Example

VERSION = 1

DEFAULTS = {"learning_rate": 2e-5, "lr_scheduler_type": "cosine", "warmup_steps": 0.03, "num_train_epochs": 3}

ADAPTER_DEFAULTS = DEFAULTS | {"learning_rate": 2e-4}
"""An adapter wants a higher rate; this one is that of GPT-2 in arXiv:2106.09685, appendix D."""

RESERVED = TRAINER_RESERVED | {
    "packing": "set `packing:` of the stage; TRL's flattens a batch into one row, which is slow without FlashAttention",
    "packing_strategy": "set `packing:` of the stage",
    "padding_free": "set `packing:` of the stage",
    "eval_packing": "set `packing:` of the stage",
    "max_length": "set `context:` of the stage",
    "truncation_mode": "set `too_long:` of the stage",
    "assistant_only_loss": "the loss always falls on the assistant's tokens alone",
    "completion_only_loss": "the loss always falls on the assistant's tokens alone",
    "dataset_text_field": "set `columns:` of the data source",
    "dataset_kwargs": "llmpipe prepares the rows itself",
    "chat_template_path": "set `chat_template:` of the stage",
    "eos_token": "the end token is the one that the chat template ends an answer with",
    "pad_token": "llmpipe sees to it that pad has a token of its own",
    "model_init_kwargs": "set `precision:` and `dropout:` of the stage",
}


class Settings(SupervisedSettings):
    """What `kind: sft` understands."""

    kind: Literal["sft"] = Field("sft", description="which stage this is")
    model: Annotated[FolderSource | None, Accepts(("causal-lm", "adapter", "seq2seq-lm"))] = Field(
        None, description="the model to teach"
    )
    data: Annotated[DataSources | None, Accepts(("dataset",))] = Field(None, description="conversations to learn from")
    chat_template: str | None = Field(None, description="Jinja text, instead of the model's own template")
    context: Count | None = Field(None, description="most tokens in a row; the model's own limit when left out")
    too_long: Literal["drop", "truncate"] = Field(
        "drop", description="what to do with a conversation that does not fit"
    )
    packing: bool = Field(True, description="put several conversations into one row, unseen by each other")
    lora: Annotated[dict[str, Any] | None, Passthrough("peft.LoraConfig", adapter_options.RESERVED_IN_SFT)] = Field(
        None, description="train an adapter, and leave the model under it as it is"
    )
    quantize: adapter_options.Quantize = None
    trainer: Annotated[dict[str, Any], Passthrough("trl.SFTConfig", RESERVED)] = Field(
        default_factory=dict, description="options of trl.SFTConfig, as they are"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if problem := adapter_options.quantize_problem(self.quantize, self.lora):
            raise ValueError(problem)
        self.batch_said_once(self.trainer)
        return self


def produces(settings: Settings) -> Artifact:
    """Say what comes out; of an encoder-decoder, another one (see `edges`)."""
    return "causal-lm" if settings.lora is None else "adapter"


def run(settings: Settings, ctx: Context) -> Result:
    """Render and mask the conversations, pack them, train with TRL, save with the template."""
    from transformers import set_seed
    from trl import SFTConfig

    from llmpipe.training import adapters, arguments, flow, lora, models, quantized, seq2seq
    from llmpipe.training.chat import PackCollator
    from llmpipe.training.chat_trainer import ChatTrainer

    assert settings.model is not None
    set_seed(ctx.seed)  # an adapter begins with random weights
    if settings.lora is None and models.is_encoder_decoder(settings.model, ctx):
        return seq2seq.run(settings, ctx)
    begun = adapters.begin(settings.model, settings.lora, ctx, quantized.loading(settings))
    model, tokenizer = begun.model, begun.tokenizer
    models.mend_pad(model, tokenizer, ctx)
    set_template(settings, tokenizer, ctx)
    if settings.dropout is not None:
        models.set_dropout(model, settings.dropout, ctx)
    context = models.fitting_context(model, settings.context or models.context_length(model))
    train, held_out, facts = read_data(settings, model, tokenizer, ctx, context=context)
    stop_at_the_end(model, tokenizer, facts.pop("end_token"))
    tokens = facts.pop("special_tokens")
    args = arguments.build(
        SFTConfig,
        ctx,
        settings,
        options=settings.trainer | {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None},
        stage_defaults=DEFAULTS if settings.lora is None else ADAPTER_DEFAULTS,
        rows=len(train),
        row_tokens=context,
        measured=len(held_out) > 0,
        width=model.config.hidden_size,
    )
    ctx.explain(
        f"Supervised fine-tuning shows the model {facts['rows']:,} conversations and has it learn the "
        f"{facts['learned_tokens']:,} tokens that the assistant says in them; {facts['held_out_rows']} are held out."
    )
    trainer = ChatTrainer(
        model=model if settings.lora is None else lora.adapt(begun, settings.lora, ctx, tokens=tokens),
        args=args,
        train_dataset=train,
        eval_dataset=held_out if len(held_out) else None,
        data_collator=PackCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    metrics = flow.fit(trainer, ctx, settings) | lora.share(trainer.model)
    folder = ctx.output(produces(settings))
    if ctx.rank:
        return Result(outputs=[folder.name], metrics={})
    adapters.save_policy(trainer.model, begun, folder)
    with ctx.checking():
        checks = gates(trainer, tokenizer, folder, facts, packing=settings.packing)
    return Result(outputs=[folder.name], metrics=metrics | facts, gates=checks)


def set_template(settings: Settings, tokenizer: PreTrainedTokenizerBase, ctx: Context) -> None:
    """Use the template in the settings, else the model's own, else a plain one, and say so."""
    from llmpipe.training.chat import PLAIN_TEMPLATE

    if settings.chat_template is not None:
        tokenizer.chat_template = settings.chat_template
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
        ctx.say("the model has no chat template; a plain one is set and saved with it (User: … Assistant: …)")


def read_data(
    settings: Settings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ctx: Context, *, context: int
) -> tuple[Any, Any, dict[str, Any]]:
    """Return the rows to train on and the held-out ones as data sets, with counts of all that was left out."""
    from datasets import Dataset

    from llmpipe.data.sources import read_conversations
    from llmpipe.data.split import split_by_prompt
    from llmpipe.training import objectives
    from llmpipe.training.chat import rows_of
    from llmpipe.training.packing import best_fit

    assert settings.data is not None
    if settings.packing:
        objectives.refuse_leaks(model, tokenizer, "causal")
    ctx.progress(doing="reading conversations")
    sides = split_by_prompt(read_conversations(settings.data, ctx), share=settings.held_out.share)
    encoded = [fitting(side, tokenizer, context=context, too_long=settings.too_long) for side in sides]
    train, held_out = (examples for examples, _ in encoded)
    dropped = sum(count for _, count in encoded)
    total = sum(len(side) for side in sides)
    report_fit(ctx, settings, dropped=dropped, total=total, context=context, left=len(train))
    lengths = [len(example.ids) for example in train]
    groups = best_fit(lengths, block=context) if settings.packing else [[index] for index in range(len(train))]
    if settings.packing:
        filled = sum(lengths) / (len(groups) * context)
        ctx.say(f"packed {len(train):,} conversations into {len(groups):,} rows of {context} tokens, {filled:.0%} full")
    alone = [[index] for index in range(len(held_out))]
    end, share = end_token(train, tokenizer)
    used = set().union(*(example.ids for example in train))
    facts = {
        "rows": len(train),
        "held_out_rows": len(held_out),
        "too_long_rows": dropped,
        "learned_tokens": sum(sum(example.learned) for example in train),
        "end_token": end,
        "special_tokens": sorted(used & tokenizer.added_tokens_decoder.keys() - {tokenizer.pad_token_id}),
        "ends_learned_share": share,
    }
    return Dataset.from_dict(rows_of(train, groups)), Dataset.from_dict(rows_of(held_out, alone)), facts


def fitting(
    side: Sequence[Any], tokenizer: PreTrainedTokenizerBase, *, context: int, too_long: str
) -> tuple[list[Example], int]:
    """Encode conversations; returns those that fit (or fit when cut) and how many did not."""
    from llmpipe.training.chat import encode, truncate

    kept, count = [], 0
    for _, conversation in side:
        example = encode(conversation, tokenizer)
        if len(example.ids) > context:
            count += 1
            example = truncate(example, context=context)
            if too_long == "drop" or not any(example.learned):
                continue
        kept.append(example)
    return kept, count


def report_fit(ctx: Context, settings: Settings, *, dropped: int, total: int, context: int, left: int) -> None:
    """Say how many conversations were too long; refuse to train when none is left."""
    from llmpipe.errors import DataError

    if dropped:
        done = "dropped" if settings.too_long == "drop" else "cut off"
        share = f"{dropped:,} of {total:,} conversations ({dropped / total:.0%})"
        ctx.say(f"{share} are longer than {context} tokens: {done}")
    if not left:
        raise DataError(
            f"no conversation fits into {context} tokens",
            hint="use a model with a longer context, or too_long: truncate",
        )


def end_token(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, float]:
    """Return the token that answers end with, and the share of the examples in which it is the last one learned.

    Only a token that text is never cut within can be it: a full stop that ends most answers is no end.
    """
    whole = tokenizer.added_tokens_decoder
    found = Counter(last for example in examples if (last := last_learned(example)) in whole)
    if not found:
        return None, 0.0
    token, count = found.most_common(1)[0]
    return token, count / len(examples)


def last_learned(example: Example) -> int | None:
    """Return the last token that the loss falls on."""
    pairs = zip(reversed(example.ids), reversed(example.learned), strict=True)
    return next((token for token, learned in pairs if learned), None)


def stop_at_the_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, last: int | None) -> None:
    """Have generation stop at what the template ends an answer with, and at nothing that is padding."""
    if last is None:
        return  # every answer was cut off; what the model stopped at before stands
    known = model.generation_config.eos_token_id
    stops = {last, *(known if isinstance(known, list) else [known])} - {None, tokenizer.pad_token_id}
    model.generation_config.eos_token_id = sorted(stops) if len(stops) > 1 else last
    model.config.eos_token_id = last


def gates(
    trainer: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, facts: dict[str, Any], *, packing: bool
) -> list[Gate]:
    """Check what makes a chat model that never stops, or one that learned nothing, and what was saved."""
    from llmpipe import gates as checks
    from llmpipe.training import adapters, objectives, saved

    mostly_cut = facts["too_long_rows"] > facts["rows"] / 2  # then ends are rightly missing
    return [
        checks.something_learned(facts["learned_tokens"]),
        checks.end_is_learned(facts["ends_learned_share"], mostly_cut=mostly_cut),
        checks.pad_is_not_end(tokenizer.pad_token_id, trainer.model.generation_config.eos_token_id),
        *([objectives.gate(trainer.model, tokenizer, "causal")] if packing else []),
        *adapters.gates(trainer.model),
        *saved.gates(trainer.model, tokenizer, folder),
        *trainer.replayed,
    ]
