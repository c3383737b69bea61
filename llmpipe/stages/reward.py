"""reward: learns to score answers from pairs of which one was preferred. Reads a model and pairs; writes `model/`.

    judge: {kind: reward, model: chat, data: {path: pairs.jsonl}, trainer: {learning_rate: 1e-5, num_train_epochs: 1}}

The model gets a head that gives an answer a number, and learns that the chosen answer's is the higher one. Rows may be
judged by several criteria; each then has its own head, or their margins are added up. `reward.json` beside the weights
says how the answers were written as tokens, so that PPO writes them the same way.

With `lora: {}` the model stays as it is, an adapter and the heads are trained, and `adapter/` is written. PPO with a
`lora:` of its own, on the same model, then reads it as one more adapter on its base.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
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
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from llmpipe.training.adapters import Beginning
    from llmpipe.training.pairs import Found, Pair
    from llmpipe.training.reward_model import RewardFormat
    from llmpipe.training.reward_trainer import PreferenceTrainer

VERSION = 1

DEFAULTS = {
    "learning_rate": 1e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "num_train_epochs": 1,  # more, and it learns the pairs by heart
    "train_sampling_strategy": "group_by_length",
}

ADAPTER_DEFAULTS = DEFAULTS | {"learning_rate": 1e-4}
"""An adapter wants a higher rate, ten times as in sft."""

RESERVED = TRAINER_RESERVED | {
    "max_length": "set `context:` of the stage",
    "center_rewards_coefficient": "set `center:` of the stage",
    "disable_dropout": "set `dropout:` of the stage",
    "chat_template_path": "set `chat_template:` of the stage",
    "eos_token": "the end token is the one that the chat template ends an answer with",
    "pad_token": "llmpipe sees to it that pad has a token of its own",
    "pad_to_multiple_of": "rows are padded to the longest of a batch",
    "dataset_num_proc": "llmpipe prepares the rows itself",
    "model_init_kwargs": "set `precision:` and `dropout:` of the stage",
    "trust_remote_code": "code of a model's repository is never run",
}


class Settings(SupervisedSettings):
    """What `kind: reward` understands."""

    kind: Literal["reward"] = Field("reward", description="which stage this is")
    model: Annotated[FolderSource | None, Accepts(("causal-lm", "adapter"))] = Field(
        None, description="the model to begin from; best the one whose answers it will score"
    )
    data: Annotated[DataSources | None, Accepts(("dataset",))] = Field(
        None, description="pairs of answers, the chosen and the rejected one"
    )
    chat_template: str | None = Field(None, description="Jinja text, instead of the model's own template")
    context: Count | None = Field(None, description="most tokens in an answer and its prompt; the model's own limit")
    too_long: Literal["drop", "truncate"] = Field("drop", description="what to do with a pair that does not fit")
    center: float = Field(0.01, ge=0, description="how strongly rewards are kept near zero (arXiv:2312.09244)")
    margin: bool = Field(False, description="the rows' margins are the least difference to learn")
    criteria: dict[str, float] | None = Field(
        None, description="weight of each criterion that rows are judged by; 1 for all when left out"
    )
    heads: Literal["each", "sum"] = Field(
        "each", description="each: a head for every criterion; sum: one head, for the weighted sum of their margins"
    )
    lora: Annotated[dict[str, Any] | None, Passthrough("peft.LoraConfig", adapter_options.RESERVED)] = Field(
        None, description="train an adapter and the heads, and leave the model under them as it is"
    )
    quantize: adapter_options.Quantize = None
    trainer: Annotated[dict[str, Any], Passthrough("trl.RewardConfig", RESERVED)] = Field(
        default_factory=dict, description="options of trl.RewardConfig, as they are"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.criteria == {}:
            raise ValueError("criteria is empty; leave it out to take those of the data")
        if problem := adapter_options.quantize_problem(self.quantize, self.lora):
            raise ValueError(problem)
        self.batch_said_once(self.trainer)
        return self


def produces(_settings: Settings) -> Artifact:
    """Say what comes out."""
    return "reward-model"


def run(settings: Settings, ctx: Context) -> Result:
    """Write the pairs as tokens, train with TRL, measure on held-out pairs, save with the format."""
    from transformers import set_seed
    from trl import RewardConfig

    from llmpipe.training import adapters, arguments, flow, lora, models, quantized, reward_model, reward_trainer

    assert settings.model is not None
    set_seed(ctx.seed)  # a pad token that has to be added gets random weights
    begun = adapters.begin(settings.model, settings.lora, ctx, quantized.loading(settings))
    models.mend_pad(begun.model, begun.tokenizer, ctx)
    context = models.fitting_context(begun.model, settings.context or models.context_length(begun.model))
    train, held_out, form, facts = read_data(settings, begun.tokenizer, ctx, context=context)
    reward = reward_model.RewardModel(scored(settings, begun, form.criteria, ctx), begun.tokenizer, form)
    args = arguments.build(
        RewardConfig,
        ctx,
        settings,
        options=settings.trainer
        | {"max_length": None, "disable_dropout": False, "center_rewards_coefficient": settings.center},
        stage_defaults=DEFAULTS if settings.lora is None else ADAPTER_DEFAULTS,
        rows=len(train),
        row_tokens=2 * max(pair.longest for pair in train),
        measured=len(held_out) > 0,
        width=begun.model.config.hidden_size,
    )
    ctx.explain(
        f"A reward model learns to score answers from {len(train):,} pairs of which one was preferred; "
        f"{len(held_out):,} are held out to see how often it prefers the better one of a pair that it never saw."
    )
    trainer = reward_trainer.PreferenceTrainer(
        reward, args=args, pairs=train, held_out=held_out, margin=settings.margin
    )
    fitted = flow.fit(trainer, ctx, settings) | lora.share(reward.model)
    for meaningless in ("held_out_perplexity", "held_out_loss_before"):  # of pairs; and log 2, for it preferred none
        fitted.pop(meaningless, None)
    folder = ctx.output("reward-model" if settings.lora is None else "adapter")
    if ctx.rank:
        return Result(outputs=[folder.name], metrics={})
    reward_model.save(reward, folder, begun)
    metrics = fitted | facts | measures(trainer, held_out, form, ctx)
    with ctx.checking():
        again = reward_trainer.reloaded(folder, begun, settings.model, ctx)
        checks = reward_trainer.gates(trainer, again, train, folder, context=context)
        checks += adapters.gates(reward.model) if settings.lora is not None else []
    return Result(outputs=[folder.name], metrics=metrics, gates=checks)


def scored(settings: Settings, begun: Beginning, criteria: Sequence[str], ctx: Context) -> Any:
    """Turn the model into one that scores, with an adapter on it where one is to be trained."""
    from llmpipe.training import lora, models, reward_model

    made = reward_model.classifier(begun.model, criteria)
    models.set_dropout(made, settings.dropout or 0.0, ctx if settings.dropout is not None else None)
    if settings.lora is None:
        return made
    lora.refuse_output_layer(begun.model, settings.lora)
    # The rows of special tokens stay as they are, unlike in sft: none of them is to be predicted, and the layers above
    # tell rows apart that nobody trained (on a base that never saw its template, held-out loss was 0.106 so, and 0.103
    # with them). An adapter without rows can be trained further, and its shape is one that PPO's may have.
    return lora.adapt(replace(begun, model=made), settings.lora, ctx, tokens=())


def read_data(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, ctx: Context, *, context: int
) -> tuple[list[Pair], list[Pair], RewardFormat, dict[str, Any]]:
    """Return the pairs to train on, those held out, and how they are written, with counts of all that was left out."""
    from llmpipe.data.sources import read_preferences
    from llmpipe.data.split import split_by_prompt
    from llmpipe.training import pairs, reward_model

    assert settings.data is not None
    ctx.progress(doing="reading pairs")
    found: Found = list(read_preferences(settings.data, ctx))
    weights = pairs.criteria_of(found, settings.criteria)
    facts: dict[str, Any] = {}
    if settings.heads == "sum":
        found, facts["tied_pairs"] = pairs.summed(found, weights)
        weights = {reward_model.ONE_CRITERION: 1.0}
    check_margins(settings, found)
    chat = pairs.set_template(settings.chat_template, found, tokenizer, ctx)
    end = reward_model.end_token_of(tokenizer, chat=chat)
    heads = tuple(weights)
    sides = [
        pairs.encode([one for _, one in side], tokenizer, end=end, chat=chat, heads=heads)
        for side in split_by_prompt(found, share=settings.held_out.share)
    ]
    every = [pair for side in sides for pair in side]
    facts["boundary_share"] = sum(pair.joined for pair in every) / len(every)
    (train, held_out), counts = pairs.fitting(sides, ctx, context=context, cut=settings.too_long == "truncate")
    held_out = pairs.measurable(held_out, max_tokens=settings.held_out.max_tokens)
    template = str(tokenizer.chat_template) if chat else None
    form = reward_model.RewardFormat(
        template, end, reward_model.vocabulary_of(tokenizer), heads, tuple(weights.values())
    )
    facts |= counts | {"rows": len(train), "held_out_rows": len(held_out), "format": format_facts(form, tokenizer)}
    return train, held_out, form, facts


def check_margins(settings: Settings, found: Found) -> None:
    """Refuse margins that are asked for where no row has one."""
    from llmpipe.errors import DataError

    if settings.margin and all(one.margin is None for _, one in found):
        hint = "margin: false, or give the rows a margin column"
        raise DataError("margin: true, but no row has a margin", hint=hint)


def format_facts(form: RewardFormat, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what the manifest says of the format; the template itself is in reward.json."""
    template = form.chat_template
    return {
        "chat_template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        "end_token": tokenizer.convert_ids_to_tokens(form.end_token_id),
        "end_token_id": form.end_token_id,
        "vocabulary": form.vocabulary,
        "criteria": dict(zip(form.criteria, form.weights, strict=True)),
    }


def measures(trainer: PreferenceTrainer, held_out: Sequence[Pair], form: RewardFormat, ctx: Context) -> dict[str, Any]:
    """Measure the kept model on the held-out pairs, over all and by criterion, and say how often it is right."""
    from llmpipe.evaluation import pairs as measuring

    if not held_out:
        return {}
    rewards = [(float(chosen), float(rejected)) for chosen, rejected in trainer.rewards(held_out)]
    lengths = [(len(pair.chosen) - pair.prompt, len(pair.rejected) - pair.prompt) for pair in held_out]
    found = measuring.measure(rewards, lengths) | {"held_out_accuracy_before": 0.5}  # heads of zero prefer nothing
    if len(form.criteria) > 1:
        margins = [
            [chosen - rejected for (chosen, rejected), pair in zip(rewards, held_out, strict=True) if pair.head == head]
            for head in range(len(form.criteria))
        ]
        found["by_criterion"] = {
            name: measuring.accuracy(own) for name, own in zip(form.criteria, margins, strict=True) if own
        }
    low, high = found["held_out_accuracy_interval"]
    ctx.say(
        f"prefers the better answer in {found['held_out_accuracy']:.1%} of {len(held_out):,} held-out pairs "
        f"(95% interval {low:.1%}–{high:.1%})"
    )
    return found
