"""From a stage's settings to the parts of PPO: prompts, end tokens, scorers, the two networks."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.context import Context
from llmpipe.data.formats import Conversation
from llmpipe.data.preferences import Prompt
from llmpipe.data.sources import read_prompts
from llmpipe.data.split import split_by_prompt
from llmpipe.errors import DataError, StageError, did_you_mean
from llmpipe.settings import AnySource
from llmpipe.training.arguments import world_size
from llmpipe.training.chat import render
from llmpipe.training.models import set_dropout
from llmpipe.training.ppo.experience import Collector, Penalties
from llmpipe.training.ppo.policy_value import (
    PolicyValue,
    Reference,
    ValueNetwork,
    backbone_of,
    head_of_scores,
    zero_head,
)
from llmpipe.training.ppo.rollout import Generate, Sampler
from llmpipe.training.ppo.scoring import Asked, ModelScorer, Rewards, Scorer
from llmpipe.training.ppo.shared import AdapterReference, RewardAdapter, ValueAdapter
from llmpipe.training.ppo.trainer import Options
from llmpipe.training.ppo.vllm import VLLM

if TYPE_CHECKING:
    from llmpipe.stages.rlhf_ppo import Settings


def read_asked(
    sources: Sequence[AnySource],
    ctx: Context,
    tokenizer: Tokenizer,
    *,
    chat: bool,
    room: int,
    held_out_share: float,
) -> tuple[list[Asked], list[Asked], int]:
    """Read prompts, those to learn on and those held out; `room` is the most tokens that one may have.

    Returns:
        Both sides, and how many prompts were left out for their length.
    """
    sides = split_by_prompt(read_prompts(sources, ctx), share=held_out_share)
    asked = [[encoded(prompt, tokenizer, chat=chat) for _, prompt in side] for side in sides]
    train, held_out = ([one for one in side if len(one.ids) <= room] for side in asked)
    dropped = sum(map(len, asked)) - len(train) - len(held_out)
    if dropped:
        ctx.say(f"{dropped:,} of {sum(map(len, asked)):,} prompts are longer than {room} tokens: dropped")
    if not train:
        raise DataError(
            f"no prompt has at most {room} tokens, which is what rollout.max_new_tokens leaves of the context",
            hint="lower rollout.max_new_tokens, or use a model with a longer context",
        )
    return train, held_out, dropped


def encoded(prompt: Prompt, tokenizer: Tokenizer, *, chat: bool) -> Asked:
    """Tokenise a prompt up to where the answer begins: through the chat template, or as plain text after bos.

    Raises:
        DataError: there is no token that an answer could follow.
    """
    if chat:
        text = render(Conversation(prompt.messages, prompt.tools), tokenizer, len(prompt.messages), ask=True)
        return Asked(prompt, tokenizer(text, add_special_tokens=False)["input_ids"])
    text = prompt.text if prompt.text is not None else "\n".join(turn["content"] for turn in prompt.messages)
    opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = opening + tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        message = "a prompt is empty, and this tokenizer has no begin token that an answer could follow"
        raise DataError(message, hint="leave out rows with an empty prompt")
    return Asked(prompt, ids)


def end_ids(model: PreTrainedModel, tokenizer: Tokenizer, stop: Sequence[str] | None) -> tuple[int, ...]:
    """Return the ids of the tokens that end an answer.

    Raises:
        StageError: there is none, or a name is no token.
    """
    if stop is not None:
        vocabulary = tokenizer.get_vocab()
        for name in stop:
            if name not in vocabulary:
                near = did_you_mean(name, list(vocabulary))
                raise StageError(f"rollout.stop: {name!r} is not a token of this model{near}")
        return tuple(vocabulary[name] for name in stop)
    found = model.generation_config.eos_token_id
    found = found if found is not None else tokenizer.eos_token_id
    if found is None:
        raise StageError(
            "the policy has no end token, so that its answers would never be over",
            hint='name the token that ends an answer: rollout: {stop: ["<|end|>"]}',
        )
    return tuple(found) if isinstance(found, list) else (int(found),)


def collector(
    settings: Settings,
    ctx: Context,
    policy: PreTrainedModel,
    tokenizer: Tokenizer,
    made: Sequence[Scorer],
    *,
    ends: tuple[int, ...],
    device: torch.device,
) -> Collector:
    """Put together what makes experience: the networks, the reference, the sampler, the rewards."""
    reference = AdapterReference(policy) if isinstance(policy, PeftModel) else Reference(policy)
    value = value_of(settings, policy, made)
    for model in (policy, value, reference.model, *(one.model.model for one in made if isinstance(one, ModelScorer))):
        model.to(device)
    length = settings.length_penalty
    penalties = Penalties(
        settings.missing_end_penalty,
        length.begin if length else None,
        settings.rollout.max_new_tokens,
        length.most if length else 0.0,
    )
    return Collector(
        model=PolicyValue(policy, value, temperature=settings.rollout.temperature),
        reference=reference,
        sampler=sampler(settings, ctx, tokenizer, ends),
        rewards=Rewards(made, settings.reward_clip),
        penalties=penalties,
        tokenizer=tokenizer,
        discount=settings.discount,
        gae_lambda=settings.gae_lambda,
        tokens_per_pass=2 * settings.micro_batch_tokens,
        report=lambda doing: ctx.progress(doing=doing),
    )


def sampler(settings: Settings, ctx: Context, tokenizer: Tokenizer, ends: tuple[int, ...]) -> Sampler:
    """Make what the policy answers with: this process, or a vLLM server."""
    longest, temperature = settings.rollout.max_new_tokens, settings.rollout.temperature
    if settings.rollout.url is None:
        return Generate(ends, tokenizer.pad_token_id, longest, temperature)
    return VLLM(settings.rollout.url, ctx.dir / "sent", ends, longest, temperature)


def options(settings: Settings, made: Sequence[Scorer], *, learning_rate: float) -> Options:
    """Return the numbers of the algorithm, with the defaults that depend on others."""
    from_reward = value_source(settings, made) is not None
    warmup = settings.value_warmup_rollouts
    return Options(
        samples=settings.rollout.samples,
        samples_per_prompt=settings.rollout.samples_per_prompt,
        rollouts=settings.rollouts,
        epochs=settings.epochs,
        minibatches=settings.minibatches,
        clip=settings.clip,
        dual_clip=settings.dual_clip,
        value_clip=settings.value_clip,
        value_coefficient=settings.value_coefficient,
        value_learning_rate=settings.value_learning_rate or 5 * learning_rate,
        value_warmup_rollouts=(0 if from_reward else 2) if warmup is None else warmup,
        target_kl=settings.target_kl,
        rescale_value=from_reward,
    )


def batches(settings: Settings, *, row_tokens: int) -> dict[str, Any]:
    """Turn rollouts into Trainer's steps: micro-batches bound memory, minibatches are optimizer steps.

    Raises:
        StageError: a minibatch cannot be shared out over the processes.
    """
    rows, left = divmod(settings.rollout.samples, settings.minibatches * world_size())
    if left:
        message = f"a minibatch of {settings.rollout.samples // settings.minibatches} answers"
        raise StageError(f"{message} cannot be shared out over {world_size()} processes", hint="raise rollout.samples")
    fitting = max(1, settings.micro_batch_tokens // row_tokens)
    micro = min(rows, settings.trainer.get("per_device_train_batch_size", fitting))
    steps = settings.epochs * settings.minibatches
    every = settings.evaluate_every or max(1, settings.rollouts // 5)
    return {
        "max_steps": settings.rollouts * steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": -(-rows // micro),
        "logging_steps": steps,
        "logging_first_step": False,
        "eval_steps": every * steps,
    }


def value_source(settings: Settings, made: Sequence[Scorer]) -> ModelScorer | None:
    """Return the reward model that the value begins from: the only one, of the policy's tokens, and on its base."""
    only = made[0] if len(made) == 1 else None
    if settings.value_model == "head" or not isinstance(only, ModelScorer) or not only.same_tokens:
        return None
    return only if settings.lora is None or isinstance(only.model.model, RewardAdapter) else None


def value_of(
    settings: Settings, policy: PreTrainedModel, made: Sequence[Scorer]
) -> ValueNetwork | ValueAdapter | nn.Linear:
    """Make what gives the values, as `value_model` and `lora` say."""
    head = zero_head(policy.config.hidden_size)
    if settings.value_model == "head":
        return head
    source = value_source(settings, made)
    if settings.lora is None:
        return value_network(policy, source)
    if source is not None:
        judge = source.model.model
        judge.lend_to_value()
        head = head_of_scores(judge.score, torch.tensor(source.weights))
    return ValueAdapter(policy, head)


def value_network(policy: PreTrainedModel, source: ModelScorer | None) -> ValueNetwork:
    """Make the value network from a reward model, or else from the policy with a head that begins at 0."""
    if source is None:
        return ValueNetwork(deepcopy(backbone_of(policy)), zero_head(policy.config.hidden_size))
    copied = deepcopy(source.model.model).requires_grad_(True)
    set_dropout(copied, 0.0, None)  # it is read in training mode, too
    return ValueNetwork(copied.base_model, head_of_scores(copied.score, torch.tensor(source.weights)))
