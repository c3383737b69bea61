"""Kahneman-Tversky optimisation (arXiv:2402.01306): TRL's KTOTrainer on answers of ids, with llmpipe's measures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from trl import KTOConfig, KTOTrainer

from llmpipe.context import Context
from llmpipe.data.sources import read_labelled
from llmpipe.data.split import split_by_prompt
from llmpipe.evaluation import pairs as measuring
from llmpipe.training import answers as answering
from llmpipe.training import pairs as pairing
from llmpipe.training import reward_model
from llmpipe.training.answers import Answer
from llmpipe.training.reference import LOST_NATS, HeldToReference
from llmpipe.training.reward_trainer import LikeLengths

if TYPE_CHECKING:
    from llmpipe.stages.kto import Settings


def read_data(
    settings: Settings, tokenizer: Tokenizer, ctx: Context, *, context: int
) -> tuple[list[Answer], list[Answer], int, dict[str, Any]]:
    """Return the answers to train on, those held out, the end token, and counts of all that was left out."""
    assert settings.data is not None
    ctx.progress(doing="reading answers")
    found = list(read_labelled(settings.data, ctx))
    chat = pairing.set_template(settings.chat_template, found, tokenizer, ctx)
    end = reward_model.end_token_of(tokenizer, chat=chat)
    sides = [
        answering.encode([one for _, one in side], tokenizer, end=end, chat=chat)
        for side in split_by_prompt(found, share=settings.held_out.share)
    ]
    (train, held_out), facts = answering.fitting(sides, ctx, context=context, cut=settings.too_long == "truncate")
    held_out = pairing.measurable(held_out, max_tokens=settings.held_out.max_tokens)
    return train, held_out, end, {
        **facts,
        "rows": len(train),
        "good_rows": sum(one.is_good for one in train),
        "held_out_rows": len(held_out),
        "end_token": tokenizer.convert_ids_to_tokens(end),
    }  # fmt: skip


class AnswerTrainer(HeldToReference, KTOTrainer):
    """KTOTrainer on answers that are ids already: what it trains on is what llmpipe's data layer made.

    They come in one order, drawn from the seed, batches of like length together; each has beside it an answer to
    another prompt of its batch, which the KL term is estimated from, and whose reference is taken beforehand.
    """

    sides = ("completion_ids", "KL_completion_ids")
    figures = ("ref_logps", "ref_KL_logps")
    score = "auc"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: Tokenizer,
        *,
        args: KTOConfig,
        answers: Sequence[Answer],
        held_out: Sequence[Answer],
        context: int,
    ) -> None:
        batch = args.per_device_train_batch_size
        order = LikeLengths([one.tokens for one in answers], batch=batch, seed=args.seed)
        rows = answering.columns_of([answers[index] for index in order], batch=batch, context=context)
        kept = answering.columns_of(held_out, batch=len(held_out), context=context) if held_out else None
        super().__init__(model, tokenizer, args=args, rows=rows, held_out=kept)

    def logps_of(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the policy's log-probabilities of the labelled answers and of those beside them, (answers, 2)."""
        return torch.stack([self.answer_logps(inputs), self.answer_logps(inputs, "KL_")], dim=1)

    def rewards(self) -> tuple[torch.Tensor, float]:
        """Return the implicit rewards of held-out answers, beta times the log-ratio, (answers,), and the KL in nats."""
        moved = (self.logps(self.eval_dataset) - self.reference(self.eval_dataset)).double()
        return self.args.beta * moved[:, 0], max(0.0, float(moved[:, 1].mean()))

    def measured(self) -> tuple[float, float | None]:
        """Return the mean loss of held-out answers (eq. 7, all in one batch), and how often good rewards beat bad."""
        rewards, kl = self.rewards()
        good = torch.tensor(list(self.eval_dataset["label"]))
        weights = torch.where(good, self.args.desirable_weight, self.args.undesirable_weight)
        value = torch.sigmoid((rewards - self.args.beta * kl) * torch.where(good, 1, -1))
        return float((weights * (1 - value)).mean()), measuring.auc(rewards[good].tolist(), rewards[~good].tolist())


def measures(trainer: AnswerTrainer, held_out: Sequence[Answer], ctx: Context) -> dict[str, Any]:
    """Measure the kept model on the held-out answers, and say how well its implicit reward tells good from bad."""
    rewards, kl = trainer.rewards()
    scored = [(one, float(reward)) for one, reward in zip(held_out, rewards, strict=True)]
    good, bad = ([reward for one, reward in scored if one.is_good == label] for label in (True, False))
    found: dict[str, Any] = {"held_out_kl": kl, "held_out_good": len(good), "held_out_bad": len(bad)}
    for name, kind in (("reward_good", good), ("reward_bad", bad)):
        found |= {name: fmean(kind)} if kind else {}
    if (area := measuring.auc(good, bad)) is not None:
        found |= {"held_out_auc": area, "held_out_auc_before": 0.5}  # the reference gained nothing
        ctx.say(f"gave a good answer more reward than a bad one in {area:.1%} of all cases, of {_counted(good, bad)}")
    if margins := rivals(scored):
        found |= measuring.accuracy(margins) | {"held_out_accuracy_before": 0.5}
        low, high = found["held_out_accuracy_interval"]
        ctx.say(
            f"of answers to the same prompt, it was the good one in {found['held_out_accuracy']:.1%} of "
            f"{len(margins):,} pairs (95% interval {low:.1%}–{high:.1%})"
        )
    if good:
        found |= _good_nats(trainer, ctx)
    return found


def _counted(good: Sequence[float], bad: Sequence[float]) -> str:
    return f"{len(good):,} good and {len(bad):,} bad held-out answers"


def rivals(scored: Sequence[tuple[Answer, float]]) -> list[float]:
    """Return by how much good answers beat bad ones to the same prompt, each in one comparison at most."""
    margins: list[float] = []
    for _, rows in groupby(sorted(scored, key=lambda row: row[0].asked), key=lambda row: row[0].asked):
        together = list(rows)
        good, bad = ([reward for one, reward in together if one.is_good == label] for label in (True, False))
        margins += [reward - other for reward, other in zip(good, bad, strict=False)]
    return margins


def _good_nats(trainer: AnswerTrainer, ctx: Context) -> dict[str, float]:
    """Return how unlikely good held-out answers are, and were; say so if they became less likely."""
    data = trainer.eval_dataset
    good = torch.tensor(list(data["label"]))
    before, after = (-float(logps[good, 0].mean()) for logps in (trainer.reference(data), trainer.logps(data)))
    if after - before > LOST_NATS:
        ctx.say(
            f"the good answers themselves became less likely, by {after - before:.1f} nats each: "
            "lower trainer.learning_rate, or raise trainer.desirable_weight"
        )
    return {"good_nats_before": before, "good_nats": after}
