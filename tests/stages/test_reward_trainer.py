"""The reward trainer: TRL's loss, a head for each criterion, and scores that are those it trains on."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import Trainer
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from llmpipe.errors import StageError
from llmpipe.settings import TRAINER_RESERVED
from llmpipe.stages.reward import RESERVED
from llmpipe.training import reward_model
from llmpipe.training.reward_model import classifier
from llmpipe.training.reward_trainer import LikeLengths, PreferenceTrainer
from tests.stages.preferred import encoded, reward_of

SHAPES = {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "qwen3": {"head_dim": 16, "num_key_value_heads": 2}}


def config_of(ctx: Any, **options: Any) -> RewardConfig:
    plain = {"bf16": False, "use_cpu": True, "report_to": "none", "max_length": None, "disable_dropout": False}
    return RewardConfig(str(ctx.dir / "t"), **plain, **options)


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("center", [None, 0.01])
def test_the_loss_of_one_head_is_that_of_trl(margin, center, ctx, make_model, tokenizer) -> None:
    reward = reward_of(make_model, tokenizer)
    found = encoded(tokenizer, margin=0.7)
    args = config_of(ctx, center_rewards_coefficient=center)
    ours = PreferenceTrainer(reward, args=args, pairs=found, held_out=found, margin=margin)
    theirs = RewardTrainer(model=reward.model, args=args, train_dataset=ours.train_dataset, processing_class=tokenizer)
    rows = [ours.train_dataset[n] for n in range(len(found))]
    reward.model.eval()
    plain = theirs.compute_loss(reward.model, DataCollatorForPreference(tokenizer.pad_token_id)(rows))
    assert ours.compute_loss(reward.model, ours.data_collator(rows)).item() == pytest.approx(plain.item(), abs=1e-6)
    loss, accuracy = ours.measured()
    if not center:
        assert loss == pytest.approx(plain.item(), abs=1e-6)
    assert 0 <= accuracy <= 1


def test_a_pair_is_learned_by_its_own_head_alone(ctx, make_model, tokenizer) -> None:
    reward = reward_of(make_model, tokenizer, ("kind", "short"))
    found = encoded(tokenizer, heads=("kind", "short"), criterion="short")
    trainer = PreferenceTrainer(reward, args=config_of(ctx), pairs=found, held_out=found, margin=False)
    assert reward.model.config.id2label == {0: "kind", 1: "short"}
    trainer.compute_loss(reward.model, trainer.data_collator([trainer.train_dataset[0]])).backward()
    gradient = reward.model.score.weight.grad
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().max() > 0


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt", "gpt_neox", "qwen3"])
def test_scores_are_those_that_the_trainer_sees(arch, make_model, tokenizer) -> None:
    """RewardTrainer's collator and the model's own forward, against ids alone, in batches of any size."""
    made = classifier(make_model(arch, **SHAPES.get(arch, {})), ("reward",)).eval()
    torch.nn.init.normal_(made.score.weight, generator=torch.Generator().manual_seed(1))
    form = reward_model.RewardFormat("", 2, "", ("reward",), (1.0,))
    reward = reward_model.RewardModel(made, tokenizer, form)
    found = encoded(tokenizer)
    rows = [{"chosen_ids": pair.chosen, "rejected_ids": pair.rejected} for pair in found]
    batch = DataCollatorForPreference(tokenizer.pad_token_id)(rows)
    with torch.no_grad():
        expected = made(**batch, use_cache=False).logits
    answers = [pair.chosen for pair in found] + [pair.rejected for pair in found]
    for tokens in (1, 100, 16384):
        torch.testing.assert_close(reward.scores(answers, tokens_per_pass=tokens), expected, atol=1e-5, rtol=1e-5)


def test_an_answer_is_read_at_its_end_even_where_that_is_the_padding(make_model, tokenizer) -> None:
    reward = reward_of(make_model, tokenizer)
    answers = [pair.chosen for pair in encoded(tokenizer, 3)]
    expected = reward.scores(answers)
    reward.model.config.pad_token_id = reward.format.end_token_id
    torch.testing.assert_close(reward.scores(answers), expected)


def test_batches_of_like_length_are_the_same_in_each_epoch_of_a_seed() -> None:
    lengths = [(n * 37) % 101 for n in range(1000)]
    sampler = LikeLengths(lengths, batch=8, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(1000))
    batches = [[lengths[n] for n in orders[0][at : at + 8]] for at in range(0, 1000, 8)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)
    firsts = [batch[0] for batch in batches]
    assert sum(left < right for left, right in pairwise(firsts)) in range(40, 85)  # no slope


def test_an_architecture_without_a_score_head_is_refused(make_model) -> None:
    with pytest.raises(StageError) as caught:
        classifier(make_model("mamba", state_size=4, num_heads=2), ("reward",))
    assert str(caught.value) == (
        "mamba cannot become a reward model: transformers has no classifier with a score head for it"
    )


def test_what_is_overridden_and_set_by_the_stage_is_still_there() -> None:
    assert callable(RewardTrainer.create_model_card)
    assert callable(Trainer._get_train_sampler)
    source = inspect.getsource(RewardTrainer.__init__)
    assert 'getattr(model.config, "num_labels", None) != 1' in source  # without it, labels need no hiding
    fields = RewardConfig.__dataclass_fields__
    assert {"max_length", "disable_dropout", "center_rewards_coefficient"} <= set(RESERVED) & set(fields)
    assert set(RESERVED) - set(TRAINER_RESERVED) <= set(fields)


def test_the_user_may_choose_another_order(ctx, make_model, tokenizer) -> None:
    found = encoded(tokenizer)
    args = config_of(ctx, train_sampling_strategy="sequential")
    trainer = PreferenceTrainer(reward_of(make_model, tokenizer), args=args, pairs=found, held_out=(), margin=False)
    assert list(trainer._get_train_sampler()) == list(range(len(found)))
