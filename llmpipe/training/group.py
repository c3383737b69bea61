"""From the settings of rloo or grpo to a trained policy."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.artifact import write_json
from llmpipe.context import Context, Result
from llmpipe.errors import StageError
from llmpipe.rollouts import GroupSettings
from llmpipe.settings import Artifact
from llmpipe.training import adapters, arguments, flow, models, quantized, saved
from llmpipe.training.group_trainer import GRPO, RLOO
from llmpipe.training.lora import share
from llmpipe.training.ppo import judges, parts, shared
from llmpipe.training.ppo.experience import Collector, Penalties
from llmpipe.training.ppo.policy_value import PolicyValue, Reference, zero_head
from llmpipe.training.ppo.prompts import PromptStream
from llmpipe.training.ppo.rollout import Generate
from llmpipe.training.ppo.scoring import Rewards, Scorer


def train(
    settings: GroupSettings,
    ctx: Context,
    trainer_class: type[RLOO | GRPO],
    config_class: Any,
    *,
    stage_defaults: dict[str, Any],
    artifact: Artifact,
) -> Result:
    """Sample, score, compare, learn; keep the policy that did best on held-out prompts."""
    assert settings.model is not None
    set_seed(ctx.seed)
    begun = adapters.begin(settings.model, settings.lora, ctx, quantized.loading(settings))
    policy, tokenizer = begun.model, begun.tokenizer
    models.mend_pad(policy, tokenizer, ctx)
    models.set_dropout(policy, 0.0, None)
    ends = parts.end_ids(policy, tokenizer, settings.rollout.stop)
    policy.generation_config.eos_token_id = list(ends)
    if settings.lora is not None and settings.beta:  # then TRL adds what the reference needs
        policy = shared.put(policy, settings.lora, begun.folder)
    elif settings.lora is not None:
        policy = shared.attach(policy, settings.lora, begun.folder, value=False)
    trainer, facts = prepare(settings, ctx, policy, tokenizer, trainer_class, config_class, stage_defaults)
    fitted = flow.fit(trainer, ctx, settings)
    metrics, samples = trainer.outcome(fitted.get("held_out_loss"))
    metrics |= {key: fitted[key] for key in ("steps", "tokens", "tokens_per_s", "best_step") if key in fitted}
    metrics |= {"rollouts": settings.rollouts, "answers": settings.rollouts * settings.rollout.samples} | share(policy)
    folder = ctx.output(artifact)
    outputs = [folder.name, "samples.json"]
    if ctx.rank:
        return Result(outputs=outputs, metrics={})
    write_json(ctx.dir / "samples.json", {"samples": samples})
    adapters.save_policy(policy, begun, folder)
    with ctx.checking():
        checks = saved.gates_of_policy(trainer, policy, tokenizer, folder)
    return Result(outputs=outputs, metrics=metrics | facts, gates=checks)


def prepare(
    settings: GroupSettings,
    ctx: Context,
    policy: PreTrainedModel,
    tokenizer: Tokenizer,
    trainer_class: type[RLOO | GRPO],
    config_class: Any,
    stage_defaults: dict[str, Any],
) -> tuple[RLOO | GRPO, dict[str, Any]]:
    """Put the trainer together; returns it with counts of what was read."""
    assert settings.data is not None and settings.reward is not None
    rollout = settings.rollout
    judged_by = judges.load(settings.reward, ctx)
    if settings.chat:
        judges.adopt_template(tokenizer, judged_by, ctx)
    chat = settings.chat and tokenizer.chat_template is not None
    room = models.context_length(policy) - rollout.max_new_tokens
    prompts, held_out, dropped = parts.read_asked(
        settings.data, ctx, tokenizer, chat=chat, room=room, held_out_share=settings.held_out.share
    )
    held_out = list(islice(cycle(held_out), settings.evaluate_answers))
    longest = max(len(one.ids) for one in [*prompts, *held_out]) + rollout.max_new_tokens
    scorers = judges.scorers(judged_by, ctx, tokenizer, chat=chat, normalize=False, longest=longest)
    args = arguments.build(
        config_class,
        ctx,
        settings,
        options=settings.trainer | options(settings, row_tokens=longest),
        stage_defaults=stage_defaults,
        rows=settings.rollouts * rollout.samples,
        row_tokens=longest,
        measured=len(held_out) > 0,
        width=policy.config.hidden_size,
    )
    ends = tuple(policy.generation_config.eos_token_id)
    trainer = trainer_class(
        policy,
        tokenizer,
        args=args,
        collector=collector(settings, ctx, policy, tokenizer, scorers, ends=ends, device=args.device),
        asked=prompts,
        order=PromptStream(len(prompts), ctx.seed).take(
            settings.rollouts * rollout.samples // rollout.samples_per_prompt
        ),
        held_out=held_out,
        say=ctx.say,
    )
    ctx.explain(
        f"{trainer_class.__name__} has the model answer {rollout.samples // rollout.samples_per_prompt} prompts "
        f"{rollout.samples_per_prompt} times each, {settings.rollouts} times over, and makes those answers likelier "
        "that scored higher than the others to the same prompt."
    )
    counts = {"prompts": len(prompts), "held_out_prompts": len({one.shown for one in held_out})}
    return trainer, counts | {"too_long_prompts": dropped}


def options(settings: GroupSettings, *, row_tokens: int) -> dict[str, Any]:
    """Turn rollouts into TRL's steps: micro-batches bound memory, minibatches are optimizer steps.

    Raises:
        StageError: a minibatch cannot be shared out over the processes.
    """
    rollout = settings.rollout
    rows, left = divmod(rollout.samples, settings.minibatches * arguments.world_size())
    if left:
        message = f"a minibatch of {rollout.samples // settings.minibatches} answers cannot be shared out"
        raise StageError(f"{message} over {arguments.world_size()} processes", hint="raise rollout.samples")
    most = max(1, settings.micro_batch_tokens // row_tokens)
    wanted = settings.trainer.get("per_device_train_batch_size", most)
    micro = max(size for size in range(1, min(rows, wanted) + 1) if rows % size == 0)  # TRL cuts into equal parts
    steps = settings.epochs * settings.minibatches
    every = settings.evaluate_every or max(1, settings.rollouts // 5)
    return {
        "max_steps": settings.rollouts * steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "steps_per_generation": rows // micro * settings.minibatches,
        "num_iterations": settings.epochs,
        "num_generations": rollout.samples_per_prompt,
        "num_generations_eval": 1,
        "max_completion_length": rollout.max_new_tokens,
        "temperature": rollout.temperature,
        "top_k": 0,
        "beta": settings.beta,
        "shuffle_dataset": False,  # the order is a stream of our own
        "disable_dropout": False,  # it is off: TRL's switch misses the attention's
        "logging_steps": steps,
        "logging_first_step": False,
        "eval_steps": every * steps,
    }


def collector(
    settings: GroupSettings,
    ctx: Context,
    policy: PreTrainedModel,
    tokenizer: Tokenizer,
    scorers: list[Scorer],
    *,
    ends: tuple[int, ...],
    device: torch.device,
) -> Collector:
    """Put together what scores answers and measures the policy on held-out prompts."""
    rollout = settings.rollout
    reference = shared.AdapterReference(policy) if settings.lora is not None else Reference(policy)
    models_on_device = [policy, reference.model, *(one.model.model for one in scorers if hasattr(one, "model"))]
    for model in models_on_device:
        model.to(device)
    rewards = Rewards(scorers, clip=None)
    rewards.keep_units()
    return Collector(
        model=PolicyValue(policy, zero_head(policy.config.hidden_size).to(device), temperature=rollout.temperature),
        reference=reference,
        sampler=Generate(ends, tokenizer.pad_token_id, rollout.max_new_tokens, rollout.temperature),
        rewards=rewards,
        penalties=Penalties(settings.missing_end_penalty, None, rollout.max_new_tokens, 0.0),
        tokenizer=tokenizer,
        discount=1.0,
        gae_lambda=1.0,
        tokens_per_pass=2 * settings.micro_batch_tokens,
        report=lambda doing: ctx.progress(doing=doing),
    )
