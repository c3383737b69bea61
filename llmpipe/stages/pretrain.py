"""pretrain: trains a language model on text. Reads text and a tokenizer; writes `model/`.

    base: {kind: pretrain, data: {path: "texts/*.txt"}, model: {size: 10M}, trainer: {max_steps: 2000}}

Documents are packed into rows of `context` tokens without seeing each other. Held-out text is measured while it
trains, in nats, perplexity and bits per byte; the best checkpoint becomes the output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llmpipe.architectures import architecture_problem, config_problems
from llmpipe.context import Context, Result
from llmpipe.settings import (
    TRAINER_RESERVED,
    Accepts,
    Artifact,
    Count,
    DataSources,
    FolderSource,
    GgufSource,
    HubSource,
    Passthrough,
    PathSource,
    StageSource,
    Strict,
    SupervisedSettings,
    bare_name,
    source_key,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmpipe.training.packing import PackedTokens

VERSION = 1

DEFAULTS: dict[str, Any] = {
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 0.05,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
}
"""What small models pretrain well with; the schedule falls back to cosine's own options when another is named."""


class SizedModel(Strict):
    """A Llama of about this many parameters; the rule for its shape is in `llmpipe.training.models.dial`."""

    size: Count = Field(description="parameters, such as 500k, 10M or 1B; sets depth, width and heads")


class BuiltModel(Strict):
    """An architecture of transformers with a configuration of your own."""

    arch: str = Field(description="model type as transformers names it: llama, gpt2, qwen3, ...")
    config: dict[str, Any] = Field(default_factory=dict, description="keys of the architecture's configuration")

    @field_validator("arch")
    @classmethod
    def _known(cls, arch: str) -> str:
        if problem := architecture_problem(arch):
            raise PydanticCustomError("arch", "{problem}", {"problem": problem})
        return arch

    @field_validator("config")
    @classmethod
    def _understood(cls, config: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        problems = config_problems(info.data["arch"], config) if "arch" in info.data else []
        if problems:
            raise PydanticCustomError("config", "{problems}", {"problems": "; ".join(problems)})
        return config


Model = Annotated[
    Annotated[SizedModel, Tag("size")]
    | Annotated[BuiltModel, Tag("arch")]
    | Annotated[StageSource, Tag("stage")]
    | Annotated[PathSource, Tag("path")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[GgufSource, Tag("gguf")],
    Discriminator(source_key),
    bare_name,
]


class Settings(SupervisedSettings):
    """What `kind: pretrain` understands."""

    kind: Literal["pretrain"] = Field("pretrain", description="which stage this is")
    data: Annotated[DataSources | None, Accepts(("dataset",))] = Field(None, description="text to train on")
    tokenizer: Annotated[FolderSource | None, Accepts(("tokenizer",))] = Field(
        None, description="cuts the text; a model that is continued brings its own"
    )
    model: Annotated[Model, Accepts(("causal-lm",))] = Field(
        description="{size: 10M}, {arch: llama, config: {...}}, or a model to continue from"
    )
    objective: Literal["causal"] = Field("causal", description="causal: guess the next token")
    context: Count = Field(512, description="tokens the model sees at once, and tokens in a row")
    trainer: Annotated[dict[str, Any], Passthrough("transformers.TrainingArguments", TRAINER_RESERVED)] = Field(
        default_factory=dict, description="options of transformers.TrainingArguments, as they are"
    )

    def unused_inputs(self) -> frozenset[str]:
        """A model that is continued has a tokenizer already."""
        made = isinstance(self.model, SizedModel | BuiltModel)
        return frozenset() if made else frozenset({"tokenizer"})

    @model_validator(mode="after")
    def _batch_is_said_once(self) -> Settings:
        return self.batch_said_once(self.trainer)


def produces(_settings: Settings) -> Artifact:
    """Say what comes out."""
    return "causal-lm"


def run(settings: Settings, ctx: Context) -> Result:
    """Tokenise, pack, train, and save the model that guesses held-out text best."""
    from transformers import TrainingArguments, set_seed

    from llmpipe.training import arguments, flow, models
    from llmpipe.training.packing import identity

    set_seed(ctx.seed)
    model, tokenizer = make_model(settings, ctx)
    if settings.dropout is not None:
        models.set_dropout(model, settings.dropout, ctx)
    train, held_out, facts = read_data(settings, tokenizer, ctx)
    args = arguments.build(
        TrainingArguments,
        ctx,
        settings,
        options=settings.trainer,
        stage_defaults=defaults_for(settings.trainer),
        rows=len(train),
        row_tokens=settings.context,
        measured=len(held_out) > 0,
        width=model.config.hidden_size,
    )
    parameters = sum(p.numel() for p in model.parameters())
    ctx.explain(
        f"Pretraining teaches a model of {parameters / 1e6:.2f} M parameters to guess the next token of "
        f"{facts['tokens_in_corpus'] / 1e6:.2f} M tokens of text; {facts['held_out_documents']} documents are held out "
        "to measure it."
    )
    trainer = flow.PretrainTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out if len(held_out) else None,
        data_collator=identity,
        processing_class=tokenizer,
    )
    before = bits_per_byte(model, tokenizer, settings, ctx)
    metrics = flow.fit(trainer, ctx, settings, bytes_per_token=facts.pop("bytes_per_token")) | facts
    if ctx.rank == 0:
        metrics |= {"bits_per_byte": bits_per_byte(model, tokenizer, settings, ctx), "bits_per_byte_before": before}
        models.save(trainer.model, tokenizer, ctx.output("causal-lm"))
    outputs = ["model", "held_out.jsonl"] if len(held_out) else ["model"]
    return Result(outputs=outputs, metrics=metrics)


def bits_per_byte(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings, ctx: Context
) -> float | None:
    """Measure the held-out documents whole, as the eval stage does; rows cut from them miss what came before."""
    from llmpipe.artifact import read_lines
    from llmpipe.evaluation.perplexity import score_texts

    path = ctx.dir / "held_out.jsonl"
    if ctx.rank or not path.exists():
        return None
    ctx.progress(doing="measuring held-out text")
    was_training = model.training
    texts = (row["text"] for row in read_lines(path))
    limit = settings.held_out.max_tokens
    score = score_texts(model.eval(), tokenizer, texts, window=settings.context, max_tokens=limit)
    model.train(was_training)
    return float(score.bits_per_byte)


def defaults_for(options: dict[str, Any]) -> dict[str, Any]:
    """Leave our schedule's keywords out where the user names another schedule."""
    if options.get("lr_scheduler_type", DEFAULTS["lr_scheduler_type"]) != DEFAULTS["lr_scheduler_type"]:
        return {key: value for key, value in DEFAULTS.items() if not key.startswith("lr_scheduler")}
    return DEFAULTS


def make_model(settings: Settings, ctx: Context) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Build the model that the settings describe, or load the one to continue from."""
    from llmpipe.training import models

    if not isinstance(settings.model, SizedModel | BuiltModel):
        model, tokenizer = models.load(settings.model, ctx)
        models.fitting_context(model, settings.context)
        models.mend_pad(model, tokenizer, ctx)
        return model, tokenizer
    assert settings.tokenizer is not None
    tokenizer = models.load_tokenizer(settings.tokenizer, ctx)
    if isinstance(settings.model, BuiltModel):
        config = settings.model.config
        return models.build(settings.model.arch, config, tokenizer=tokenizer, context=settings.context), tokenizer
    shape: dict[str, Any] = models.dial(settings.model.size, vocab_size=len(tokenizer))
    shape["tie_word_embeddings"] = True
    model = models.build("llama", shape, tokenizer=tokenizer, context=settings.context)
    millions = model.num_parameters() / 1e6
    ctx.say(f"{shape['num_hidden_layers']} layers, {shape['hidden_size']} wide, {millions:.2f} M parameters")
    return model, tokenizer


def read_data(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, ctx: Context
) -> tuple[PackedTokens, PackedTokens, dict[str, Any]]:
    """Tokenise once, on rank 0, into files that every process maps; returns training rows, held-out rows, facts."""
    from llmpipe.artifact import read_json, write_json
    from llmpipe.training.packing import PackedTokens, wait_for

    facts_file = ctx.dir / "tokens.json"
    if ctx.rank == 0 and not facts_file.exists():
        write_json(facts_file, tokenise(settings, tokenizer, ctx))
    wait_for(facts_file)
    facts: dict[str, Any] = read_json(facts_file) or {}

    def rows(name: str, documents: int, max_tokens: int | None = None) -> PackedTokens:
        return PackedTokens(
            ctx.dir / f"{name}.tokens",
            block=settings.context,
            vocab_size=len(tokenizer),
            bos=tokenizer.bos_token_id,
            eos=tokenizer.eos_token_id,
            documents=documents,
            max_tokens=max_tokens,
        )

    held_out = rows("held_out", facts["held_out_documents"], settings.held_out.max_tokens)
    return rows("train", facts["documents"]), held_out, facts


def tokenise(settings: Settings, tokenizer: PreTrainedTokenizerBase, ctx: Context) -> dict[str, Any]:
    """Write train.tokens, held_out.tokens and held_out.jsonl; returns their counts."""
    import json

    from llmpipe.data.sources import read_texts, split_texts
    from llmpipe.errors import DataError
    from llmpipe.training.packing import encode, write_tokens

    assert settings.data is not None
    ctx.progress(doing="tokenising")
    texts = read_texts(settings.data, ctx)
    train, held_out = split_texts(texts, share=settings.held_out.share, mixed=len(settings.data) > 1)
    size = len(tokenizer)
    documents, tokens = write_tokens(encode(train, tokenizer), ctx.dir / "train.tokens", vocab_size=size)
    if tokens < settings.context:
        message = f"the text has {tokens} tokens, less than one row of {settings.context}"
        raise DataError(message, hint=f"lower context to {max(1, tokens // 2)} or less, or add text")
    _, held_tokens = write_tokens(encode(held_out, tokenizer), ctx.dir / "held_out.tokens", vocab_size=size)
    if held_out and held_tokens < settings.context:
        ctx.say(f"held-out text has {held_tokens} tokens, less than a row; raise held_out.share to measure anything")
    if held_out:
        with (ctx.dir / "held_out.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in held_out)
    held_bytes = sum(len(text.encode("utf-8")) for text in held_out)
    return {
        "documents": documents,
        "tokens_in_corpus": tokens,
        "held_out_documents": len(held_out),
        "held_out_tokens": held_tokens,
        "bytes_per_token": held_bytes / held_tokens if held_tokens else None,
    }
