"""dpo: teaches a model from pairs which answers are preferred, without a reward model. Writes `model/`.

    dpo: {kind: dpo, model: chat, data: {path: pairs.jsonl}, trainer: {learning_rate: 1e-6, num_train_epochs: 1}}

The chosen answer of a pair is made likelier than the rejected one, relative to the model as it came (direct preference
optimisation, arXiv:2305.18290). Pairs are read and written as tokens just as by a reward stage. With `lora: {}` the
model stays as it is, an adapter on it is trained, and `adapter/` is written. docs/preferences.md compares it with kto,
rloo, grpo and rlhf-ppo.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

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

VERSION = 1

DEFAULTS = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "num_train_epochs": 1,
    "train_sampling_strategy": "group_by_length",
}
ADAPTER_DEFAULTS = DEFAULTS | {"learning_rate": 1e-5}
"""An adapter wants a higher rate."""
RESERVED = TRAINER_RESERVED | {
    "beta": "set `beta:` of the stage",
    "max_length": "set `context:` of the stage",
    "truncation_mode": "set `too_long:` of the stage",
    "precompute_ref_log_probs": "what the reference says is always computed once, before training",
    "precompute_ref_batch_size": "answers of about one length are read together, as many as fit",
    "sync_ref_model": "the reference is the model as it came, and stays so",
    "ref_model_mixup_alpha": "the reference is the model as it came, and stays so",
    "ref_model_sync_steps": "the reference is the model as it came, and stays so",
    "disable_dropout": "dropout is always off",
    "padding_free": "rows are padded to the longest of a batch",
    "pad_to_multiple_of": "rows are padded to the longest of a batch",
    "pad_token": "llmpipe sees to it that pad has a token of its own",
    "dataset_num_proc": "llmpipe prepares the rows itself",
    "model_init_kwargs": "set `precision:` of the stage",
    "trust_remote_code": "code of a model's repository is never run",
}


class Settings(SupervisedSettings):
    """What `kind: dpo` understands."""

    kind: Literal["dpo"] = Field("dpo", description="which stage this is")
    model: Annotated[FolderSource | None, Accepts(("causal-lm", "adapter"))] = Field(
        None, description="the policy to begin from; as it comes, it is the reference"
    )
    data: Annotated[DataSources | None, Accepts(("dataset",))] = Field(
        None, description="pairs of answers, the chosen and the rejected one"
    )
    chat_template: str | None = Field(None, description="Jinja text, instead of the model's own template")
    context: Count | None = Field(None, description="most tokens in an answer and its prompt; the model's own limit")
    too_long: Literal["drop", "truncate"] = Field("drop", description="what to do with a pair that does not fit")
    beta: float = Field(0.1, gt=0, description="how strongly the policy is held to the reference")
    lora: Annotated[dict[str, Any] | None, Passthrough("peft.LoraConfig", adapter_options.RESERVED)] = Field(
        None, description="train an adapter, and leave the model under it as it is"
    )
    quantize: adapter_options.Quantize = None
    trainer: Annotated[dict[str, Any], Passthrough("trl.DPOConfig", RESERVED)] = Field(
        default_factory=dict, description="options of trl.DPOConfig, as they are"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if problem := adapter_options.reference_problem(self.dropout, self.lora):
            raise ValueError(problem)
        if problem := adapter_options.quantize_problem(self.quantize, self.lora):
            raise ValueError(problem)
        self.batch_said_once(self.trainer)
        return self


def produces(settings: Settings) -> Artifact:
    """Say what comes out."""
    return "causal-lm" if settings.lora is None else "adapter"


def run(settings: Settings, ctx: Context) -> Result:
    """Write the pairs as tokens, train with TRL, measure on held-out pairs, save."""
    from transformers import set_seed
    from trl import DPOConfig

    from llmpipe.stages.sft import stop_at_the_end
    from llmpipe.training import adapters, arguments, dpo_trainer, lora, models, quantized, reference

    assert settings.model is not None
    set_seed(ctx.seed)  # an adapter begins with random weights
    begun = adapters.begin(settings.model, settings.lora, ctx, quantized.loading(settings))
    model, tokenizer = begun.model, begun.tokenizer
    models.mend_pad(model, tokenizer, ctx)
    models.set_dropout(model, 0.0, None)
    context = models.fitting_context(model, settings.context or models.context_length(model))
    train, held_out, end, facts = dpo_trainer.read_data(settings, tokenizer, ctx, context=context)
    stop_at_the_end(model, tokenizer, end)
    args = arguments.build(
        DPOConfig,
        ctx,
        settings,
        options=settings.trainer | {"max_length": None, "beta": settings.beta, "precompute_ref_log_probs": True},
        stage_defaults=DEFAULTS if settings.lora is None else ADAPTER_DEFAULTS,
        rows=len(train),
        row_tokens=2 * max(pair.longest for pair in train),
        measured=len(held_out) > 0,
        width=model.config.hidden_size,
    )
    ctx.explain(
        f"DPO has the model learn from {len(train):,} pairs to find the preferred answer likelier than the other, and "
        f"holds it to what it found before; {len(held_out):,} pairs are held out to see whether it learned to prefer."
    )
    policy = model if settings.lora is None else lora.adapt(begun, settings.lora, ctx, tokens=())
    ctx.progress(doing="reading the pairs as the reference")
    trainer = dpo_trainer.PairTrainer(policy, tokenizer, args=args, pairs=train, held_out=held_out)
    metrics = reference.fitted(trainer, ctx, settings) | facts
    metrics |= dpo_trainer.measures(trainer, held_out, ctx) if held_out else {}
    folder = ctx.output(produces(settings))
    if ctx.rank:
        return Result(outputs=[folder.name], metrics={})
    adapters.save_policy(trainer.model, begun, folder)
    answers = [answer for pair in train for answer in (pair.chosen, pair.rejected)]
    with ctx.checking():
        again = reference.as_it_came(trainer, settings, ctx)
        checks = reference.gates(trainer, again, answers, end=end, context=context)
        checks += reference.gates_of_output(trainer, folder, sum(map(len, answers)) - 2 * sum(p.prompt for p in train))
    return Result(outputs=[folder.name], metrics=metrics, gates=checks)
