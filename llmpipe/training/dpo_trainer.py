"""Direct preference optimisation (arXiv:2305.18290): TRL's DPOTrainer on pairs of ids, with llmpipe's measures.

The reference is the policy as it came. Its log-probabilities are taken once, before anything is trained, so that no
second model is kept, and nothing that training does can change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from datasets import Dataset
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from trl import DPOConfig, DPOTrainer

from llmpipe.artifact import Gate
from llmpipe.context import Context
from llmpipe.data.sources import read_preferences, split_by_prompt
from llmpipe.evaluation import pairs as measuring
from llmpipe.training import pairs as pairing
from llmpipe.training import reward_model
from llmpipe.training.flow import Measured
from llmpipe.training.pairs import Pair
from llmpipe.training.ppo.policy_value import fingerprint_of
from llmpipe.training.reward_trainer import LikeLengths

if TYPE_CHECKING:
    from llmpipe.stages.dpo import Settings

TOKENS_PER_PASS = 16384
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
PROBES = 8
LOST_NATS = 1.0
"""From here on it is said that chosen answers became less likely; DPO may do that (arXiv:2410.08847)."""
TOLERANCE, COARSE_TOLERANCE = 1e-4, 0.1
"""Nats per token that a log-probability may be off by, in fp32 and in less; wrong positions put it off by a nat."""


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


class PairTrainer(Measured, DPOTrainer):
    """DPOTrainer on pairs that are ids already: what it trains on is what llmpipe's data layer made."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        args: DPOConfig,
        pairs: Sequence[Pair],
        held_out: Sequence[Pair],
    ) -> None:
        self.came_with = fingerprint_of(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=Dataset.from_dict(columns_of(pairs)),
            eval_dataset=Dataset.from_dict(columns_of(held_out)) if held_out else None,
            processing_class=tokenizer,
        )

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card into checkpoints; `llmpipe export` writes one for people."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """Leave the ids as they are: TRL 1.16 has no option to, and would ask for the text."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """Add what the reference says of each pair: the policy itself, for this is called before it is trained.

        TRL 1.16's own hands the figures to other processes in a file, which they do not find where the data set is in
        memory (datasets then names the file at random).
        """
        logps = self.logps(dataset)
        for side, name in enumerate(REFERENCE):
            dataset = dataset.add_column(name, logps[:, side].tolist())
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Batch pairs of like length, unless the user wants another strategy."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch = self.args.per_device_train_batch_size * self.args.world_size
        return LikeLengths(self.train_dataset["length"], batch=batch, seed=self.args.seed)

    def logps(self, data: Dataset) -> torch.Tensor:
        """Return the policy's log-probabilities of chosen and rejected answers in nats, (pairs, 2), on the CPU.

        Each process reads its share of the pairs; all get all of the figures.
        """
        args = self.args
        was_training = self.model.training
        self.model.eval()
        lengths = list(data["length"])
        mine = range(args.process_index, len(lengths), args.world_size)
        found = torch.zeros(len(lengths), 2, device=args.device)
        for rows in reward_model.batches([lengths[index] for index in mine], tokens=TOKENS_PER_PASS // 2):
            indices = [mine[row] for row in rows]
            batch = self.data_collator(data.__getitems__(indices))
            there = {key: value.to(args.device) for key, value in batch.items()}
            found[indices] = torch.stack(self.compute_ref_log_probs(self.model, there), dim=1).float()
        if args.world_size > 1:
            dist.all_reduce(found)
        self.model.train(was_training)
        return found.cpu()

    def reference(self, data: Dataset) -> torch.Tensor:
        """Return what the loss takes for the reference's log-probabilities in nats, (pairs, 2)."""
        return torch.tensor([list(data[name]) for name in REFERENCE]).T

    def rewards(self) -> torch.Tensor:
        """Return the implicit rewards of held-out answers, beta times the log-ratio to the reference, (pairs, 2)."""
        moved = self.logps(self.eval_dataset) - self.reference(self.eval_dataset)
        return self.args.beta * moved

    def measured(self) -> tuple[float, float]:
        """Return the mean loss of held-out pairs in nats (eq. 7), and the share whose chosen answer gained more."""
        rewards = self.rewards().double()
        return float(-logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()), _chosen_ahead(rewards)

    def held_out_loss(self) -> float:
        """Return nats per held-out pair by equation 7, whatever `loss_type` it learns from."""
        return self.measured()[0]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Log the mean loss of the held-out pairs in nats, and the share that is right."""
        loss, accuracy = self.measured()
        metrics = {"eval_loss": loss, "eval_accuracy": accuracy}
        was_training = self.model.training
        self.model.eval()  # or TRL would add the figures of the training batches to these
        self.log(dict(metrics))
        self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


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


def gates(trainer: PairTrainer, again: PreTrainedModel, train: Sequence[Pair], *, end: int, context: int) -> list[Gate]:
    """Check what makes a policy that is held to something else than it began from, or one that never stops.

    `again` is the model as it came, loaded anew.
    """
    ends = trainer.model.generation_config.eos_token_id
    pad = trainer.processing_class.pad_token_id
    answers = [answer for pair in train for answer in (pair.chosen, pair.rejected)]
    return [
        Gate(
            name="reference-unchanged",
            passed=fingerprint_of(again) == trainer.came_with and agrees(trainer, again),
            why="the loss has to hold the policy to the log-probabilities of the model as it came",
        ),
        Gate(
            name="pad-is-not-end",
            passed=pad not in (ends if isinstance(ends, list) else [ends]),
            why="padding would stop every answer",
        ),
        Gate(
            name="answers-end",
            passed=all(answer[-1] == end or len(answer) == context for answer in answers),
            why="a model that never sees the end token learned does not stop",
        ),
    ]


def agrees(trainer: PairTrainer, again: PreTrainedModel) -> bool:
    """Whether a few of the reference's log-probabilities are those of the model as it came, read without padding."""
    rows = trainer.train_dataset.select(range(min(PROBES, len(trainer.train_dataset))))
    answers = [(row["prompt_ids"], row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
    with trainer.accelerator.autocast():
        plain = plain_logps(again.to(trainer.args.device), answers)
    off = (plain - trainer.reference(rows).flatten()).abs() / torch.tensor([len(answer) for _, answer in answers])
    low = trainer.args.bf16 or trainer.args.fp16
    return bool(off.max() <= (COARSE_TOLERANCE if low else TOLERANCE))


@torch.no_grad()
def plain_logps(model: PreTrainedModel, answers: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Return log-probabilities of answers to prompts in nats, (answers,), from the model's logits, one at a time.

    There is no padding, no mask and no fused head: what any batch has to agree with.
    """
    found = []
    for prompt, answer in answers:
        ids = torch.tensor([prompt + answer], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -len(answer) - 1 : -1]
        found.append(-cross_entropy(logits.float(), ids[0, -len(answer) :], reduction="sum"))
    return torch.stack(found).cpu()
