"""The trainer of dpo stages: the loss and gradient of the paper, TRL's batches, and a reference that stays."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from llmpipe.settings import TRAINER_RESERVED
from llmpipe.stages.dpo import RESERVED
from llmpipe.training import dpo_trainer, reference
from llmpipe.training.dpo_trainer import PairTrainer
from llmpipe.training.pairs import Pair
from tests.stages.preferred import encoded

SHAPES = {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "qwen3": {"head_dim": 16, "num_key_value_heads": 2}}


@pytest.fixture
def trainer_of(ctx: Any, tokenizer: Any) -> Callable[..., PairTrainer]:
    def make(model: PreTrainedModel, found: list[Pair], **options: Any) -> PairTrainer:
        plain = {"bf16": False, "use_cpu": True, "report_to": "none", "max_length": None, "beta": 0.1}
        plain |= {"precompute_ref_log_probs": True, "gradient_checkpointing": False, "remove_unused_columns": False}
        args = DPOConfig(str(ctx.dir / "t"), **{**plain, **options})
        return PairTrainer(model.eval(), tokenizer, args=args, pairs=found, held_out=found)

    return make


def answers_of(found: list[Pair]) -> list[list[int]]:
    return [answer for pair in found for answer in (pair.chosen, pair.rejected)]


def moved(model: PreTrainedModel) -> None:
    """Put a model a little aside, as training does."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))


def equation_7(policy: PreTrainedModel, reference: PreTrainedModel, found: list[Pair], beta: float) -> torch.Tensor:
    """-log sigmoid(beta log(pi(y_w)/ref(y_w)) - beta log(pi(y_l)/ref(y_l))), one answer at a time."""
    losses = []
    for pair in found:
        ratios = []
        for answer in (pair.chosen, pair.rejected):
            ids = torch.tensor([answer])
            logps = [m(input_ids=ids).logits[0].log_softmax(-1) for m in (policy, reference)]
            places = range(pair.prompt, len(answer))
            ratios.append(sum(logps[0][t - 1, answer[t]] - logps[1][t - 1, answer[t]].detach() for t in places))
        losses.append(-logsigmoid(beta * ratios[0] - beta * ratios[1]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt", "gpt_neox", "qwen3"])
def test_loss_and_gradient_are_those_of_the_paper(arch, make_model, tokenizer, trainer_of) -> None:
    model = make_model(arch, **SHAPES.get(arch, {}))
    reference = copy.deepcopy(model)
    found = encoded(tokenizer, 3)  # short, for sums of a hundred log-probabilities are rounded by more than 1e-6
    trainer = trainer_of(model, found)
    moved(model)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(found))])
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = equation_7(model, reference.eval(), found, 0.1)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert abs(loss.item() - 0.6931) > 1e-3  # it did move
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)
    held_out, accuracy = trainer.measured()
    assert held_out == pytest.approx(expected.item(), abs=1e-6)
    assert 0 <= accuracy <= 1


def test_batches_hold_the_ids_as_they_are(make_model, tokenizer, trainer_of) -> None:
    """With their end token, padded on the right alone, whatever the tokenizer's side is."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "left"
    found = encoded(tokenizer)
    trainer = trainer_of(make_model(), found)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(found))])
    answers = [pair.chosen for pair in found] + [pair.rejected for pair in found]
    asked = [pair.prompt for pair in found] * 2
    for row, (answer, prompt) in enumerate(zip(answers, asked, strict=True)):
        assert batch["input_ids"][row, : len(answer)].tolist() == answer
        assert answer[-1] == 2
        assert batch["attention_mask"][row].tolist() == [n < len(answer) for n in range(batch["input_ids"].shape[1])]
        assert batch["completion_mask"][row].nonzero().flatten().tolist() == list(range(prompt, len(answer)))


def test_the_reference_is_what_the_model_was(make_model, tokenizer, trainer_of) -> None:
    model = make_model()
    before = copy.deepcopy(model).eval()
    found = encoded(tokenizer)[::-1]  # the longest first, as they are not read
    trainer = trainer_of(model, found)
    moved(model)
    assert trainer.ref_model is None  # no second model is kept
    plain = [reference.plain_logps(before, [(pair.chosen[: pair.prompt], pair.chosen[pair.prompt :]),
             (pair.rejected[: pair.prompt], pair.rejected[pair.prompt :])]) for pair in found]  # fmt: skip
    torch.testing.assert_close(trainer.reference(trainer.train_dataset), torch.stack(plain), atol=1e-4, rtol=1e-6)
    passed = [gate.passed for gate in reference.gates(trainer, before, answers_of(found), end=2, context=64)]
    assert passed == [True, True, True]


def test_another_reference_is_noticed(make_model, tokenizer, trainer_of) -> None:
    """Other weights, even ones that no answer uses, and figures that are not the model's own."""
    model = make_model()
    before = copy.deepcopy(model).eval()
    found = encoded(tokenizer)
    trainer = trainer_of(model, found)
    changed = copy.deepcopy(before)
    moved(changed)
    assert not reference.gates(trainer, changed, answers_of(found), end=2, context=64)[0].passed
    unused = copy.deepcopy(before)
    unused.model.embed_tokens.weight.data[299] += 1
    assert reference.agrees(trainer, unused)
    assert not reference.gates(trainer, unused, answers_of(found), end=2, context=64)[0].passed
    rows = trainer.train_dataset
    off = [value - 0.1 for value in rows["ref_rejected_logps"]]
    trainer.train_dataset = rows.remove_columns("ref_rejected_logps").add_column("ref_rejected_logps", off)
    assert not reference.gates(trainer, before, answers_of(found), end=2, context=64)[0].passed


def test_gates_of_ends(make_model, tokenizer, trainer_of) -> None:
    model = make_model()
    found = encoded(tokenizer)
    trainer = trainer_of(model, found)
    model.generation_config.eos_token_id = [2, tokenizer.pad_token_id]
    _, pad, _ = reference.gates(trainer, model, answers_of(found), end=2, context=64)
    assert not pad.passed
    cut = [found[0].cut(len(found[0].chosen) - 1)]
    assert not reference.gates(trainer, model, answers_of(cut), end=2, context=64)[2].passed
    assert reference.gates(trainer, model, answers_of(found), end=2, context=64)[2].passed


@pytest.mark.parametrize(("lost", "told"), [(0.5, False), (2.25, True)])
def test_it_is_said_when_chosen_answers_became_less_likely(
    lost, told, ctx, make_model, tokenizer, trainer_of, monkeypatch
) -> None:
    found = encoded(tokenizer)
    trainer = trainer_of(make_model(), found)
    reference = trainer.reference(trainer.eval_dataset)
    monkeypatch.setattr(trainer, "logps", lambda _: reference - torch.tensor([lost, lost + 1]))
    metrics = dpo_trainer.measures(trainer, found, ctx)
    assert metrics["held_out_accuracy"] == 1.0
    assert metrics["mean_margin"] == pytest.approx(0.1, abs=1e-5)  # beta times one nat
    assert metrics["chosen_nats"] - metrics["chosen_nats_before"] == pytest.approx(lost, abs=1e-4)
    said = [event["text"] for event in ctx.events if "became less likely" in event["text"]]
    assert said == [
        "the better answers themselves became less likely, by 2.2 nats each, in favour of answers that no pair shows: "
        "lower trainer.learning_rate, or hold them with trainer: {loss_type: [sigmoid, sft]}"
    ] * told  # fmt: skip


def test_the_prompt_is_what_both_answers_share_where_a_template_rewrites_it() -> None:
    pair = Pair([5, 6, 7, 8, 2], [5, 9, 8, 2], 3, 0, None, False)
    found = dpo_trainer.columns_of([pair])
    assert found == {"prompt_ids": [[5]], "chosen_ids": [[6, 7, 8, 2]], "rejected_ids": [[9, 8, 2]], "length": [5]}


def test_pairs_of_like_length_come_together_unless_another_order_is_asked_for(
    make_model, tokenizer, trainer_of
) -> None:
    found = encoded(tokenizer)
    assert isinstance(
        trainer_of(make_model(), found, train_sampling_strategy="group_by_length")._get_train_sampler(),
        dpo_trainer.LikeLengths,
    )
    trainer = trainer_of(make_model(), found, train_sampling_strategy="sequential")
    assert list(trainer._get_train_sampler()) == list(range(len(found)))


def test_what_is_overridden_and_set_by_the_stage_is_still_there() -> None:
    source = inspect.getsource(DPOTrainer.__init__)
    assert source.count("self._prepare_dataset(") == 3  # training rows, held-out rows, each of several sets of them
    prepared, computed = source.index("self._prepare_dataset("), source.index("self.train_dataset = self._precompute_")
    assert prepared < source.index("super().__init__(") < source.index("add_fused_lm_head(self") < computed
    assert 'inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]' in inspect.getsource(DPOTrainer._compute_loss)
    assert callable(DPOTrainer.create_model_card)
    assert "elif is_peft_model(model) and ref_model is None:" in source  # else it copies an adapter
    assert "        else:\n            self.ref_model = ref_model\n" in source
    fields = DPOConfig.__dataclass_fields__
    assert set(RESERVED) - set(TRAINER_RESERVED) <= set(fields)
    assert not {"loss_type", "label_smoothing", "ld_alpha", "use_weighting"} & set(RESERVED)
