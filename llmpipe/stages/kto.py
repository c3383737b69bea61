"""kto: teaches a model from answers that are labelled good or bad, one at a time. Writes `model/`.

    kto: {kind: kto, model: chat, data: {path: rated.jsonl}, trainer: {learning_rate: 1e-6, num_train_epochs: 1}}

A good answer is made likelier, a bad one less likely, relative to the model as it came and to how far it has moved by
then on answers at large (Kahneman-Tversky optimisation, arXiv:2402.01306). Rows are conversations with a `label`, true
or false; the pairs of a reward or dpo stage work, too, each as a good and a bad answer. With `lora: {}` the model stays
as it is, an adapter on it is trained, and `adapter/` is written.

Where bad answers share most of their words with good ones, `trainer: {desirable_weight: 3}` keeps what they share from
being unlearned.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llmpipe.context import Context, Result
from llmpipe.settings import TRAINER_RESERVED, Accepts, DataSources, Passthrough
from llmpipe.stages import dpo

VERSION = 1

DEFAULTS = {"learning_rate": 1e-6, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "num_train_epochs": 1}
ADAPTER_DEFAULTS = DEFAULTS | {"learning_rate": 1e-5}
"""An adapter wants a higher rate."""
SHARED = (
    *("beta", "max_length", "precompute_ref_log_probs", "precompute_ref_batch_size", "sync_ref_model"),
    *("ref_model_mixup_alpha", "ref_model_sync_steps", "disable_dropout", "pad_to_multiple_of", "dataset_num_proc"),
    *("model_init_kwargs", "trust_remote_code"),
)
RESERVED = TRAINER_RESERVED | {
    **{name: dpo.RESERVED[name] for name in SHARED},
    "train_sampling_strategy": "answers come in the batches that the KL term is estimated from",
}
ALONE = "leaves no other answer in the batch to estimate the KL term from; 2 is the least"


class Settings(dpo.Settings):
    """What `kind: kto` understands: what dpo does, of answers."""

    kind: Literal["kto"] = Field("kto", description="which stage this is")  # type: ignore[assignment]
    data: Annotated[DataSources | None, Accepts(("dataset",))] = Field(
        None, description="answers with a label, true for good and false for bad; or pairs"
    )
    too_long: Literal["drop", "truncate"] = Field("drop", description="what to do with an answer that does not fit")
    trainer: Annotated[dict[str, Any], Passthrough("trl.KTOConfig", RESERVED)] = Field(
        default_factory=dict, description="options of trl.KTOConfig, as they are"
    )

    @model_validator(mode="after")
    def _answers_have_company(self) -> Self:
        if self.estimates_kl and self.trainer.get("per_device_train_batch_size") == 1:
            raise ValueError(f"trainer.per_device_train_batch_size: 1 {ALONE}")
        return self

    @property
    def estimates_kl(self) -> bool:
        """Whether the loss has a KL term."""
        return self.trainer.get("loss_type") != "apo_zero_unpaired"


produces = dpo.produces


def run(settings: Settings, ctx: Context) -> Result:
    """Write the answers as tokens, train with TRL, measure on held-out answers, save."""
    from transformers import set_seed
    from trl import KTOConfig

    from llmpipe.errors import StageError
    from llmpipe.stages.sft import stop_at_the_end
    from llmpipe.training import adapters, answers, arguments, kto_trainer, lora, models, quantized, reference

    assert settings.model is not None
    set_seed(ctx.seed)  # an adapter begins with random weights
    begun = adapters.begin(settings.model, settings.lora, ctx, quantized.loading(settings))
    model, tokenizer = begun.model, begun.tokenizer
    models.mend_pad(model, tokenizer, ctx)
    models.set_dropout(model, 0.0, None)
    context = models.fitting_context(model, settings.context or models.context_length(model))
    train, held_out, end, facts = kto_trainer.read_data(settings, tokenizer, ctx, context=context)
    stop_at_the_end(model, tokenizer, end)
    args = arguments.build(
        KTOConfig,
        ctx,
        settings,
        options=settings.trainer | {"max_length": None, "beta": settings.beta, "precompute_ref_log_probs": True},
        stage_defaults=DEFAULTS if settings.lora is None else ADAPTER_DEFAULTS,
        rows=len(train),
        row_tokens=max(answer.tokens for answer in train),
        measured=len(held_out) > 0,
        width=model.config.hidden_size,
    )
    if settings.estimates_kl and args.per_device_train_batch_size == 1:
        raise StageError(f"batch_tokens: {settings.batch_tokens} {ALONE}", hint="raise it, or micro_batch_tokens")
    facts["good_to_bad"] = answers.balance(train, ctx, good=args.desirable_weight, bad=args.undesirable_weight)
    ctx.explain(
        f"KTO makes {facts['good_rows']:,} good answers likelier and {len(train) - facts['good_rows']:,} bad ones less "
        f"likely than the model found them before; {len(held_out):,} answers are held out to see whether it can tell."
    )
    policy = model if settings.lora is None else lora.adapt(begun, settings.lora, ctx, tokens=())
    ctx.progress(doing="reading the answers as the reference")
    trainer = kto_trainer.AnswerTrainer(policy, tokenizer, args=args, answers=train, held_out=held_out, context=context)
    metrics = reference.fitted(trainer, ctx, settings) | facts
    metrics |= kto_trainer.measures(trainer, held_out, ctx) if held_out else {}
    folder = ctx.output(produces(settings))
    if ctx.rank:
        return Result(outputs=[folder.name], metrics={})
    adapters.save_policy(trainer.model, begun, folder)
    with ctx.checking():
        again = reference.as_it_came(trainer, settings, ctx)
        checks = reference.gates(trainer, again, [answer.ids for answer in train], end=end, context=context)
        checks += reference.gates_of_output(trainer, folder, sum(one.tokens - one.prompt for one in train))
    return Result(outputs=[folder.name], metrics=metrics, gates=checks)
