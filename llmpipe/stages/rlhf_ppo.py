"""rlhf-ppo: teaches a model to give answers that score high. Reads a model, rewards, prompts; writes `model/`.

    ppo: {kind: rlhf-ppo, reward: judge, data: {path: prompts.jsonl}, rollouts: 50}

Proximal policy optimisation (Schulman 2017, arXiv:1707.06347) as used for language models (Ziegler 2019,
arXiv:1909.08593): sample answers, score them, charge every token for leaving the reference, step, repeat.
docs/ppo.md explains every number it prints.
"""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llmpipe import lora as adapter_options
from llmpipe import rollouts
from llmpipe.context import Context, Result
from llmpipe.rollouts import ROLLOUTS_RESERVED
from llmpipe.settings import (
    Accepts,
    Artifact,
    Count,
    DataSources,
    FolderSource,
    HeldOut,
    Passthrough,
    RewardSources,
    Strict,
    TrainingSettings,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmpipe.training.ppo.one_base import OneBase
    from llmpipe.training.ppo.trainer import PPOTrainer

VERSION = 1

DEFAULTS = {"learning_rate": 1e-6, "lr_scheduler_type": "linear", "warmup_steps": 0.03, "adam_epsilon": 1e-5}

ADAPTER_DEFAULTS = DEFAULTS | {"learning_rate": 1e-5}
"""An adapter wants a higher rate."""


class Rollout(rollouts.Rollout):
    """How answers are sampled, and by what."""

    engine: Literal["generate", "vllm"] = Field(
        "generate", description="generate samples in this process; vllm asks a server, and needs lora:"
    )
    url: str | None = Field(None, pattern=r"^https?://[^/\s]+/?$", description="of vllm, such as http://localhost:8000")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.engine == "vllm") != (self.url is not None):
            raise ValueError("engine: vllm and url: belong together")
        return self


class KL(Strict):
    """The price of leaving the reference: beta per nat, charged at every token."""

    coefficient: float = Field(0.05, ge=0, description="reward units per nat; where an adaptive one begins")
    target: float | None = Field(None, gt=0, description="nats per answer to hold by adapting the coefficient")
    horizon: int = Field(10_000, gt=0, description="answers over which an adaptive coefficient moves")


class LengthPenalty(Strict):
    """Takes reward from long answers: nothing up to `begin` tokens, `most` at max_new_tokens, a line between."""

    begin: Count = Field(description="tokens that cost nothing")
    most: float = Field(1.0, gt=0, description="reward units that the longest answer loses")


class Settings(TrainingSettings):
    """What `kind: rlhf-ppo` understands."""

    kind: Literal["rlhf-ppo"] = Field("rlhf-ppo", description="which stage this is")
    model: Annotated[FolderSource | None, Accepts(("causal-lm", "adapter"), same_as="reward")] = Field(
        None, description="the policy to begin from; the model that the reward model began from when left out"
    )
    reward: Annotated[RewardSources | None, Accepts(("reward-model",))] = Field(
        None, description="reward models and functions {function: FILE.py:NAME}; several are added by weight"
    )
    data: Annotated[DataSources | None, Accepts(("dataset",), same_as="reward")] = Field(
        None, description="prompts; of conversations and pairs, what was asked; the reward model's when left out"
    )
    chat: bool = Field(True, description="put prompts through the chat template, where the model has one")
    micro_batch_tokens: Count = Field(
        8192, description="most tokens per forward pass and process; lower it to save memory"
    )
    rollouts: int = Field(50, gt=0, description="how often answers are sampled and learned from")
    rollout: Rollout = Field(default_factory=lambda: Rollout.model_validate({}), description="how answers are sampled")
    epochs: int = Field(2, gt=0, description="passes over the answers of a rollout")
    minibatches: int = Field(2, gt=0, description="optimizer steps per pass")
    kl: KL = Field(default_factory=lambda: KL.model_validate({}), description="the price of leaving the reference")
    clip: float = Field(0.2, gt=0, lt=1, description="how far a probability's ratio may move in a rollout")
    dual_clip: float | None = Field(None, gt=1, description="bound on the loss of bad answers (arXiv:1912.09729)")
    value_clip: float | None = Field(0.2, gt=0, description="how far a value may move in a rollout; null for no bound")
    value_coefficient: float = Field(0.1, gt=0, description="weight of the value loss; matters for value_model: head")
    value_learning_rate: float | None = Field(None, gt=0, description="5 times trainer.learning_rate when left out")
    value_model: Literal["separate", "head"] = Field(
        "separate", description="a network of its own, begun from the reward model; or a head on the policy"
    )
    value_warmup_rollouts: int | None = Field(
        None,
        ge=0,
        description="rollouts at first that teach the value alone; 0 where a reward model began it, else 2",
    )
    gae_lambda: float = Field(0.95, ge=0, le=1, description="advantages: 0 trusts the values, 1 the rewards alone")
    discount: float = Field(1.0, gt=0, le=1, description="of later rewards")
    target_kl: float | None = Field(
        None, gt=0, description="nats per token from the sampler; past 1.5 times this, a rollout's other steps are left"
    )
    normalize_reward: bool = Field(
        True, description="to mean 0 and deviation 1, as measured on the first rollout; reward models only"
    )
    reward_clip: float | None = Field(10.0, gt=0, description="bound on an answer's reward, on both sides")
    missing_end_penalty: float = Field(1.0, ge=0, description="reward units that an answer without an end loses")
    length_penalty: LengthPenalty | None = Field(None, description="takes reward from long answers")
    evaluate_every: int | None = Field(None, gt=0, description="rollouts between evaluations; a fifth when left out")
    evaluate_answers: int = Field(
        64, gt=0, description="answers to held-out prompts at an evaluation, several to each where they are few"
    )
    lora: Annotated[dict[str, Any] | None, Passthrough("peft.LoraConfig", adapter_options.RESERVED)] = Field(
        None, description="train adapters; policy, value, reference, and reward models on it, then share one base"
    )
    quantize: adapter_options.Quantize = None
    trainer: Annotated[dict[str, Any], Passthrough("transformers.TrainingArguments", ROLLOUTS_RESERVED)] = Field(
        default_factory=dict, description="options of transformers.TrainingArguments, as they are"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.held_out.max_tokens != HeldOut().max_tokens:  # a resolved recipe has every field set
            raise ValueError("held_out.max_tokens is of texts; set evaluate_answers")
        if self.dropout:
            raise ValueError("dropout makes the probabilities before and after a step differ; leave it out")
        if self.rollout.samples % self.minibatches:
            raise ValueError(f"rollout.samples ({self.rollout.samples}) is not a multiple of minibatches")
        if problem := adapter_options.quantize_problem(self.quantize, self.lora):
            raise ValueError(problem)
        if self.quantize and self.rollout.engine == "vllm":
            raise ValueError("rollout.engine: vllm samples from the model in full, not in 4 bits; leave out quantize")
        if self.rollout.engine == "vllm" and self.lora is None:
            raise ValueError("rollout.engine: vllm needs lora:, for an adapter is what is sent to the server")
        if self.lora is not None and (
            problem := adapter_options.ppo_problem(self.lora, self.value_model, self.trainer)
        ):
            raise ValueError(problem)
        if self.length_penalty and self.length_penalty.begin >= self.rollout.max_new_tokens:
            raise ValueError("length_penalty.begin is not below rollout.max_new_tokens")
        return self


def produces(settings: Settings) -> Artifact:
    """Say what comes out."""
    return "causal-lm" if settings.lora is None else "adapter"


def run(settings: Settings, ctx: Context) -> Result:
    """Sample, score, learn; keep the policy that did best on held-out prompts."""
    from transformers import set_seed

    from llmpipe.artifact import write_json
    from llmpipe.training import adapters, flow, lora, models, quantized, saved
    from llmpipe.training.ppo import one_base, parts, shared

    assert settings.model is not None
    set_seed(ctx.seed)
    begun = adapters.begin(settings.model, settings.lora, ctx, quantized.loading(settings))
    policy, tokenizer = begun.model, begun.tokenizer
    models.mend_pad(policy, tokenizer, ctx)
    models.set_dropout(policy, 0.0, None)
    ends = parts.end_ids(policy, tokenizer, settings.rollout.stop)
    policy.generation_config.eos_token_id = list(ends)
    base = None
    if settings.lora is not None:
        policy = shared.attach(policy, settings.lora, begun.folder, value=settings.value_model == "separate")
        under = lora.written(begun, settings.model, ctx, ctx.output("adapter"))
        base = one_base.OneBase(policy, tokenizer, under)
    trainer, facts = prepare(settings, ctx, policy, tokenizer, ends, base)
    ctx.explain(
        f"PPO has the model answer {settings.rollout.samples} prompts at a time, {settings.rollouts} times, scores the "
        "answers, and makes what scored higher likelier; every nat away from where it began costs "
        f"{settings.kl.coefficient} of reward."
    )
    fitted = flow.fit(trainer, ctx, settings)
    metrics, samples = trainer.outcome(fitted.get("held_out_loss"))
    metrics |= {key: fitted[key] for key in ("steps", "tokens", "tokens_per_s", "best_step") if key in fitted}
    metrics |= {"rollouts": trainer.rollouts, "answers": trainer.rollouts * settings.rollout.samples}
    folder = ctx.output(produces(settings))
    outputs = [folder.name, "samples.json"]
    if ctx.rank:
        return Result(outputs=outputs, metrics={})
    write_json(ctx.dir / "samples.json", {"samples": samples})
    adapters.save_policy(policy, begun, folder)
    with ctx.checking():
        checks = saved.gates_of_policy(trainer, policy, tokenizer, folder)
    return Result(outputs=outputs, metrics=metrics | facts, gates=checks)


def prepare(
    settings: Settings,
    ctx: Context,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ends: tuple[int, ...],
    base: OneBase | None = None,
) -> tuple[PPOTrainer, dict[str, Any]]:
    """Put the trainer together, with reward models on the policy's `base` where they belong; returns it with counts."""
    from transformers import TrainingArguments

    from llmpipe.training import arguments
    from llmpipe.training.models import context_length
    from llmpipe.training.ppo import core, judges, parts
    from llmpipe.training.ppo.trainer import PPOTrainer

    assert settings.data is not None and settings.reward is not None
    judged_by = judges.load(settings.reward, ctx, base)
    if settings.chat:
        judges.adopt_template(tokenizer, judged_by, ctx)
    chat = settings.chat and tokenizer.chat_template is not None
    room = context_length(policy) - settings.rollout.max_new_tokens
    prompts, held_out, dropped = parts.read_asked(
        settings.data, ctx, tokenizer, chat=chat, room=room, held_out_share=settings.held_out.share
    )
    held_out = list(islice(cycle(held_out), settings.evaluate_answers))
    longest = max(len(one.ids) for one in [*prompts, *held_out]) + settings.rollout.max_new_tokens
    scorers = judges.scorers(judged_by, ctx, tokenizer, chat=chat, normalize=settings.normalize_reward, longest=longest)
    args = arguments.build(
        TrainingArguments,
        ctx,
        settings,
        options=settings.trainer | parts.batches(settings, row_tokens=longest),
        stage_defaults=DEFAULTS if settings.lora is None else ADAPTER_DEFAULTS,
        rows=settings.rollouts * settings.rollout.samples,
        row_tokens=longest,
        measured=len(held_out) > 0,
        width=policy.config.hidden_size,
    )
    collector = parts.collector(settings, ctx, policy, tokenizer, scorers, ends=ends, device=args.device)
    trainer = PPOTrainer(
        collector.model,
        options=parts.options(settings, scorers, learning_rate=args.learning_rate),
        collector=collector,
        prompts=prompts,
        held_out=held_out,
        price=core.KLPrice(settings.kl.coefficient, settings.kl.target, settings.kl.horizon),
        say=ctx.say,
        progress=ctx.progress,
        args=args,
    )
    return trainer, {
        "prompts": len(prompts),
        "held_out_prompts": len({one.shown for one in held_out}),
        "too_long_prompts": dropped,
    }
