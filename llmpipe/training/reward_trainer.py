"""Training of reward models: TRL's RewardTrainer with a head for each criterion, and llmpipe's guards and measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from torch.nn.functional import logsigmoid
from torch.utils.data import Sampler
from trl import RewardConfig, RewardTrainer

from llmpipe import gates as checks
from llmpipe.artifact import Gate
from llmpipe.context import Context
from llmpipe.settings import AnySource, PathSource
from llmpipe.training import adapters, lora, quantized, reward_model, saved
from llmpipe.training.flow import Measured
from llmpipe.training.pairs import Pair, PairCollator, columns_of
from llmpipe.training.reward_model import RewardModel

BATCHES_TO_SORT = 16


def pair_losses(difference: torch.Tensor, margin: torch.Tensor | None) -> torch.Tensor:
    """Return -log sigmoid(chosen - rejected - margin) in nats, of any shape (arXiv:2307.09288, eq. 2)."""
    return -logsigmoid(difference if margin is None else difference - margin)


def _right(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Return 1 where the chosen answer has the higher reward, half for a tie; of any shape."""
    return (chosen > rejected) + (chosen == rejected) / 2


class LikeLengths(Sampler[int]):
    """Indices in a random order in which neighbours, a batch's worth, are of about the same length.

    Unlike transformers' sampler, it draws the order from the seed and the epoch alone, so that a resumed run sees
    the same rows, and it does not go from long to short.
    """

    def __init__(self, lengths: Sequence[int], *, batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = list(lengths), batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Take another order; Trainer calls this at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=draw).tolist()
        size = self.batch * BATCHES_TO_SORT
        groups = [
            sorted(order[at : at + size], key=lambda index: self.lengths[index]) for at in range(0, len(order), size)
        ]
        batches = [group[at : at + self.batch] for group in groups for at in range(0, len(group), self.batch)]
        short = [batch for batch in batches if len(batch) < self.batch]  # last, or it would shift all that follow
        full = [batch for batch in batches if len(batch) == self.batch]
        for number in torch.randperm(len(full), generator=draw).tolist():
            yield from full[number]
        yield from chain.from_iterable(short)


class PreferenceTrainer(lora.OnlyTrained, Measured, RewardTrainer):
    """RewardTrainer on pairs of ids; each pair is learned by the head of its own criterion alone."""

    def __init__(
        self,
        reward: RewardModel,
        *,
        args: RewardConfig,
        pairs: Sequence[Pair],
        held_out: Sequence[Pair],
        margin: bool,
    ) -> None:
        self.reward, self.held_out, self.margin = reward, held_out, margin
        data = [Dataset.from_dict(columns_of(side, margin=margin)) for side in (pairs, held_out)]
        config = reward.model.config
        names, config.id2label = config.id2label, {0: "reward"}  # RewardTrainer 1.16 refuses more than one head
        super().__init__(
            model=reward.model,
            args=args,
            train_dataset=data[0],
            eval_dataset=data[1] if len(held_out) else None,
            data_collator=PairCollator(reward.tokenizer.pad_token_id),
            processing_class=reward.tokenizer,
        )
        config.id2label = names
        self.right: list[torch.Tensor] = []

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card into checkpoints; `llmpipe export` writes one for people."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Batch pairs of like length, unless the user wants another strategy."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch = self.args.per_device_train_batch_size * self.args.world_size
        return LikeLengths(self.train_dataset["length"], batch=batch, seed=self.args.seed)

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """Return the mean loss of a batch's pairs, as RewardTrainer 1.16 does, each on its own head.

        The centring term keeps rewards near zero (arXiv:2312.09244, eq. 2).
        """
        outputs = model(input_ids=inputs["input_ids"], use_cache=False)
        heads = inputs["head"].repeat(2)[:, None]
        chosen, rejected = outputs.logits.float().gather(1, heads).squeeze(1).chunk(2)
        loss = pair_losses(chosen - rejected, inputs.get("margin")).mean()
        if self.args.center_rewards_coefficient:
            loss = loss + self.args.center_rewards_coefficient * ((chosen + rejected) ** 2).mean()
        if model.training:
            self.right.append(_right(chosen, rejected).mean().detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the share of pairs, since the last line, that the model got right while it learned from them."""
        if "loss" in logs and self.right:
            logs["accuracy"] = float(torch.stack(self.right).mean())
            self.right = []
        super().log(logs, start_time)

    def rewards(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """Return the rewards of chosen and rejected answers by the pairs' own heads, (pairs, 2), on the CPU."""
        was_training = self.model.training
        scores = self.reward.scores([answer for pair in pairs for answer in (pair.chosen, pair.rejected)])
        self.model.train(was_training)
        heads = torch.tensor([pair.head for pair in pairs for _ in range(2)])
        return scores.gather(1, heads[:, None]).view(-1, 2)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Log the mean loss of the held-out pairs in nats, and the share that is right."""
        loss, accuracy = self.measured()
        metrics = {"eval_loss": loss, "eval_accuracy": accuracy}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def held_out_loss(self) -> float:
        """Return nats per held-out pair; the centring term is not part of it."""
        return self.measured()[0]

    def measured(self) -> tuple[float, float]:
        """Return loss and accuracy of the held-out pairs; with several processes each takes its share of them."""
        args = self.args
        mine = self.held_out[args.process_index :: args.world_size]
        total = torch.zeros(3, dtype=torch.float64, device=args.device)
        if mine:
            chosen, rejected = self.rewards(mine).double().unbind(1)
            margin = torch.tensor([pair.margin or 0.0 for pair in mine]) if self.margin else None
            losses, right = pair_losses(chosen - rejected, margin), _right(chosen, rejected)
            total += torch.stack([losses.sum(), right.sum(), torch.tensor(len(mine))]).to(total)
        if args.world_size > 1:
            dist.all_reduce(total)
        return float(total[0] / total[2]), float(total[1] / total[2])


def reloaded(folder: Path, begun: adapters.Beginning, source: AnySource, ctx: Context) -> RewardModel:
    """Load a reward model that was just written to a folder, before a manifest says what is under its adapter.

    `source`: of the model that it began from.
    """
    written = PathSource(path=str(folder), format=None)
    if (folder / adapters.CONFIG).is_file():
        return reward_model.merged(lora.written(begun, source, ctx, folder), written, ctx)
    return reward_model.load(written, ctx)


def gates(
    trainer: PreferenceTrainer, again: RewardModel, train: Sequence[Pair], folder: Path, *, context: int
) -> list[Gate]:
    """Check what makes rewards that mean nothing to the stage that uses them; `again` was read from the folder."""
    reward, held_out = trainer.reward, trainer.held_out
    end = reward.format.end_token_id
    probes = [answer for pair in (held_out or train)[:8] for answer in (pair.chosen, pair.rejected)]
    again.model.to(reward.model.device)
    answers = [answer for pair in train for answer in (pair.chosen, pair.rejected)]
    off = adapters.off(reward.scores(probes), again.scores(probes))
    # what was saved goes onto the model in full, whose scores are not those of 4 bits
    same = again.format == reward.format and (quantized.is_quantized(reward.model) or off <= adapters.TOLERANCE)
    return [
        checks.gate("head-reloads", same, f"off by {off:.1g}"),
        checks.pad_is_not_end(reward.tokenizer.pad_token_id, end),
        checks.answers_end(answers, end=end, context=context),
        checks.gate("every-head-learns", {pair.head for pair in train} == set(range(len(reward.format.criteria)))),
        checks.something_learned(sum(pair.chosen != pair.rejected for pair in train), "pairs"),
        saved.weights_of(reward.model, again.model, folder),
        saved.template_travels(reward.tokenizer, folder),
        *trainer.replayed,
    ]
