"""Direct preference optimisation (arXiv:2305.18290): TRL's DPOTrainer on pairs of ids, with llmpipe's measures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from trl import DPOConfig, DPOTrainer

from llmpipe.context import Context
from llmpipe.data.sources import read_preferences
from llmpipe.data.split import split_by_prompt
from llmpipe.evaluation import pairs as measuring
from llmpipe.training import pairs as pairing
from llmpipe.training import reward_model
from llmpipe.training.pairs import Pair
from llmpipe.training.reference import LOST_NATS, HeldToReference
from llmpipe.training.reward_trainer import LikeLengths

if TYPE_CHECKING:
    from llmpipe.stages.dpo import Settings


def read_data(
    settings: Settings, tokenizer: Tokenizer, ctx: Context, *, context: int
) -> tuple[list[Pair], list[Pair], int, dict[str, Any]]:
    """Return the pairs to train on, those held out, the end token, and counts of all that was left out."""
    assert settings.data is not None
    ctx.progress(doing="reading pairs")
    found = list(read_preferences(settings.data, ctx))
    facts: dict[str, Any] = {}
    if len(weights := pairing.criteria_of(found, None)) > 1:
        found, facts["tied_pairs"] = pairing.summed(found, weights)
    chat = pairing.set_template(settings.chat_template, found, tokenizer, ctx)
    end = reward_model.end_token_of(tokenizer, chat=chat)
    sides = [
        pairing.encode([one for _, one in side], tokenizer, end=end, chat=chat, heads=())
        for side in split_by_prompt(found, share=settings.held_out.share)
    ]
    (train, held_out), counts = pairing.fitting(sides, ctx, context=context, cut=settings.too_long == "truncate")
    held_out = pairing.measurable(held_out, max_tokens=settings.held_out.max_tokens)
    facts |= counts | {"rows": len(train), "held_out_rows": len(held_out)}
    facts["end_token"] = tokenizer.convert_ids_to_tokens(end)
    return train, held_out, end, facts


def columns_of(pairs: Sequence[Pair]) -> dict[str, list[Any]]:
    """Return pairs as columns of a data set, as TRL's collator reads them.

    Where a template rewrites the prompt once an answer stands after it, the two answers may differ before the prompt
    that was asked would have ended: what they share is then the prompt. (Shared tokens cancel out of the loss.)
    """
    asked = [min(pair.prompt, _shared(pair)) for pair in pairs]
    return {
        "prompt_ids": [pair.chosen[:cut] for pair, cut in zip(pairs, asked, strict=True)],
        "chosen_ids": [pair.chosen[cut:] for pair, cut in zip(pairs, asked, strict=True)],
        "rejected_ids": [pair.rejected[cut:] for pair, cut in zip(pairs, asked, strict=True)],
        "length": [pair.longest for pair in pairs],
    }


def _shared(pair: Pair) -> int:
    both = zip(pair.chosen, pair.rejected, strict=False)
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], both))


class PairTrainer(HeldToReference, DPOTrainer):
    """DPOTrainer on pairs that are ids already: what it trains on is what llmpipe's data layer made."""

    sides = ("chosen_ids", "rejected_ids")
    figures = ("ref_chosen_logps", "ref_rejected_logps")
    score = "accuracy"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: Tokenizer,
        *,
        args: DPOConfig,
        pairs: Sequence[Pair],
        held_out: Sequence[Pair],
    ) -> None:
        kept = columns_of(held_out) if held_out else None
        super().__init__(model, tokenizer, args=args, rows=columns_of(pairs), held_out=kept)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Batch pairs of like length, unless the user wants another strategy."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch = self.args.per_device_train_batch_size * self.args.world_size
        return LikeLengths(self.train_dataset["length"], batch=batch, seed=self.args.seed)

    def logps_of(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the policy's log-probabilities of chosen and rejected answers in nats, (pairs, 2)."""
        return torch.stack(self.answer_logps(inputs).chunk(2), dim=1)

    def rewards(self) -> torch.Tensor:
        """Return the implicit rewards of held-out answers, beta times the log-ratio to the reference, (pairs, 2)."""
        moved = self.logps(self.eval_dataset) - self.reference(self.eval_dataset)
        return self.args.beta * moved

    def measured(self) -> tuple[float, float]:
        """Return the mean loss of held-out pairs in nats (eq. 7), and the share whose chosen answer gained more."""
        rewards = self.rewards().double()
        return float(-logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()), _chosen_ahead(rewards)


def measures(trainer: PairTrainer, held_out: Sequence[Pair], ctx: Context) -> dict[str, Any]:
    """Measure the kept model on the held-out pairs, and say how often its implicit reward is right."""
    rewards = [(float(chosen), float(rejected)) for chosen, rejected in trainer.rewards()]
    lengths = [(len(pair.chosen) - pair.prompt, len(pair.rejected) - pair.prompt) for pair in held_out]
    found = measuring.measure(rewards, lengths) | {"held_out_accuracy_before": 0.5}  # the reference gained nothing
    before, after = trainer.reference(trainer.eval_dataset), trainer.logps(trainer.eval_dataset)
    for when, logps in (("_before", before), ("", after)):
        found[f"chosen_likelier_share{when}"] = _chosen_ahead(logps)
        found[f"chosen_nats{when}"] = -float(logps[:, 0].mean())
    low, high = found["held_out_accuracy_interval"]
    ctx.say(
        f"made the better answer likelier than the worse one, next to what it was, in {found['held_out_accuracy']:.1%} "
        f"of {len(held_out):,} held-out pairs (95% interval {low:.1%}–{high:.1%})"
    )
    if (lost := found["chosen_nats"] - found["chosen_nats_before"]) > LOST_NATS:
        ctx.say(
            f"the better answers themselves became less likely, by {lost:.1f} nats each, in favour of answers that no "
            "pair shows: lower trainer.learning_rate, or hold them with trainer: {loss_type: [sigmoid, sft]}"
        )
    return found


def _chosen_ahead(figures: torch.Tensor) -> float:
    """Return the share of pairs, (pairs, 2), whose chosen answer has the higher figure; a tie counts half."""
    return sum(map(measuring.half, (figures[:, 0] - figures[:, 1]).tolist())) / len(figures)
