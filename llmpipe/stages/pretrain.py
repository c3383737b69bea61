"""pretrain: trains a language model on text. Reads text and a tokenizer; writes `model/`.

    base: {kind: pretrain, data: {path: "texts/*.txt"}, model: {size: 10M}, trainer: {max_steps: 2000}}
    bert: {kind: pretrain, objective: masked, data: {path: "texts/*.txt"}, model: {arch: bert}}

Documents are packed into rows of `context` tokens without seeing each other. Held-out text is measured while it
trains: in nats, perplexity and bits per byte of the next token; in nats and pseudo-perplexity of hidden ones; in nats
of what was missing. The best checkpoint becomes the output. docs/objectives.md tells more of the objectives and of
packing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llmpipe.architectures import architecture_problem, config_problems, objective_problem
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
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmpipe.artifact import Gate

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


Objective = Literal["causal", "masked", "denoising"]

MAKES: dict[Objective, Artifact] = {"causal": "causal-lm", "masked": "masked-lm", "denoising": "seq2seq-lm"}

LEARNS = {
    "causal": "guess the next token of",
    "masked": "guess tokens that are hidden from it in",
    "denoising": "say what is missing from",
}


class SizedModel(Strict):
    """A Llama, ModernBERT or T5 of about this many parameters; the rule for its shape is `training.shapes.dial`."""

    size: Count = Field(description="parameters, such as 500k, 10M or 1B; sets depth, width and heads")


class BuiltModel(Strict):
    """An architecture of transformers with a configuration of your own."""

    arch: str = Field(description="model type as transformers names it: llama, gpt2, bert, t5, ...")
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
    objective: Objective = Field(
        "causal",
        description="causal: guess the next token; masked: guess hidden ones from both sides (bert, modernbert, "
        "roberta); denoising: restore what is missing (t5, bart)",
    )
    model: Annotated[Model, Accepts(("causal-lm", "masked-lm", "seq2seq-lm"))] = Field(
        description="{size: 10M}, {arch: llama, config: {...}}, or a model to continue from"
    )
    whole_word: bool = Field(
        False, exclude_if=lambda whole: not whole, description="masked: hide words whole, not token by token"
    )
    packing: bool = Field(
        True,
        exclude_if=lambda packing: packing,
        description="put several documents into one row, unseen by each other; else each has one of its own, padded",
    )
    context: Count = Field(512, description="tokens the model sees at once, and tokens in a row")
    trainer: Annotated[dict[str, Any], Passthrough("transformers.TrainingArguments", TRAINER_RESERVED)] = Field(
        default_factory=dict, description="options of transformers.TrainingArguments, as they are"
    )

    def unused_inputs(self) -> frozenset[str]:
        """A model that is continued has a tokenizer already."""
        made = isinstance(self.model, SizedModel | BuiltModel)
        return frozenset() if made else frozenset({"tokenizer"})

    @field_validator("model")
    @classmethod
    def _made_for_it(cls, model: Model, info: ValidationInfo) -> Model:
        objective = info.data.get("objective", "causal")
        if isinstance(model, BuiltModel) and (problem := objective_problem(model.arch, objective)):
            raise PydanticCustomError("source", "{problem}", {"problem": problem})
        if isinstance(model, GgufSource) and objective != "causal":
            raise PydanticCustomError("source", "a GGUF file holds a causal model", {})
        return model

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.whole_word and self.objective != "masked":
            raise ValueError("whole_word is for objective: masked")
        return self.batch_said_once(self.trainer)


def produces(settings: Settings) -> Artifact:
    """Say what comes out."""
    return MAKES[settings.objective]


def run(settings: Settings, ctx: Context) -> Result:
    """Tokenise, pack, train, and save the model that guesses held-out text best."""
    from transformers import TrainingArguments, set_seed

    from llmpipe.training import arguments, corpus, flow, models, objectives

    set_seed(ctx.seed)
    model, tokenizer = make_model(settings, ctx)
    if settings.dropout is not None:
        models.set_dropout(model, settings.dropout, ctx)
    train, held_out, facts = corpus.read_data(settings, model, tokenizer, ctx)
    packs = settings.packing and facts["documents"] > 1
    if packs:
        objectives.refuse_leaks(model, tokenizer, settings.objective)
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
    ctx.explain(
        f"Pretraining teaches a model of {model.num_parameters() / 1e6:.2f} M parameters to "
        f"{LEARNS[settings.objective]} {facts['tokens_in_corpus'] / 1e6:.2f} M tokens of text; "
        f"{facts['held_out_documents']} documents are held out to measure it."
    )
    trainer = objectives.trainer_for(
        settings.objective,
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out if len(held_out) else None,
        processing_class=tokenizer,
    )
    before = bits_per_byte(model, tokenizer, settings, ctx)
    per_token = facts.pop("bytes_per_token")  # of a loss that falls on every token
    metrics = flow.fit(trainer, ctx, settings, bytes_per_token=per_token if settings.objective == "causal" else None)
    outputs = ["model", "held_out.jsonl"] if len(held_out) else ["model"]
    if ctx.rank:
        return Result(outputs=outputs, metrics={})
    if before is not None:
        after = bits_per_byte(model, tokenizer, settings, ctx)
        metrics |= {"bits_per_byte": after, "bits_per_byte_before": before}
    folder = ctx.output(produces(settings))
    models.save(trainer.model, tokenizer, folder)
    with ctx.checking():
        checks = gates(trainer, tokenizer, folder, settings, packs=packs)
    return Result(outputs=outputs, metrics=metrics | facts, gates=checks)


def gates(
    trainer: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, settings: Settings, *, packs: bool
) -> list[Gate]:
    """Check what was learned from, and what was saved."""
    from llmpipe import gates as checks
    from llmpipe.training import objectives, saved

    objective = settings.objective
    pads = [] if settings.packing else [checks.pad_is_not_end(tokenizer.pad_token_id, tokenizer.eos_token_id)]
    return [
        *objectives.learned(trainer.train_dataset, tokenizer, objective),
        *pads,
        *([objectives.gate(trainer.model, tokenizer, objective)] if packs else []),
        *saved.gates(trainer.model, tokenizer, folder, objective=objective),
        *trainer.replayed,
    ]


def bits_per_byte(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings, ctx: Context
) -> float | None:
    """Measure the held-out documents whole, as the eval stage does; rows cut from them miss what came before."""
    from llmpipe.artifact import read_lines
    from llmpipe.evaluation.perplexity import score_texts

    path = ctx.dir / "held_out.jsonl"
    if ctx.rank or not path.exists() or settings.objective != "causal":
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
    from llmpipe.training import models, objectives, shapes

    objective, kind = settings.objective, produces(settings)
    if not isinstance(settings.model, SizedModel | BuiltModel):
        model, tokenizer = models.load(settings.model, ctx, kinds=(kind,))
        models.fitting_context(model, settings.context)
        models.mend_pad(model, tokenizer, ctx)
        models.mend_end(model, tokenizer)
        objectives.mend_special_tokens(tokenizer, objective, model.config.model_type, ctx)
        models.grow(model, len(tokenizer))
        return model, tokenizer
    assert settings.tokenizer is not None
    tokenizer = models.load_tokenizer(settings.tokenizer, ctx)
    objectives.say_what_it_cannot_write(tokenizer, objective, ctx)
    arch = settings.model.arch if isinstance(settings.model, BuiltModel) else shapes.FAMILIES[objective]
    objectives.mend_special_tokens(tokenizer, objective, arch, ctx)
    if isinstance(settings.model, SizedModel):
        shape = shapes.dial(settings.model.size, vocab_size=len(tokenizer), objective=objective)
    else:
        shape = settings.model.config
    model = models.build(arch, shape, tokenizer=tokenizer, context=settings.context, kind=kind)
    if not settings.packing:
        models.mend_pad(model, tokenizer, ctx)
    if isinstance(settings.model, SizedModel):
        depth = f"{model.config.num_hidden_layers} layers" + (" on either side" if kind == "seq2seq-lm" else "")
        ctx.say(f"{depth}, {model.config.hidden_size} wide, {model.num_parameters() / 1e6:.2f} M parameters")
    return model, tokenizer
