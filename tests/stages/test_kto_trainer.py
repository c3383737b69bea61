"""The trainer of kto stages: the loss and gradient of the paper, whose answers the KL is of, and what TRL relies on."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel
from trl import KTOConfig, KTOTrainer

from llmpipe.data import said
from llmpipe.data.labelled import Labelled
from llmpipe.errors import DataError
from llmpipe.settings import TRAINER_RESERVED, SupervisedSettings
from llmpipe.stages.kto import RESERVED
from llmpipe.training import answers, arguments, kto_trainer, pairs, reference
from llmpipe.training.answers import Answer
from llmpipe.training.kto_trainer import AnswerTrainer
from tests.stages.preferred import preference
from tests.stages.test_dpo_trainer import SHAPES

BETA = 0.1


def encoded(tokenizer: Any, count: int = 5) -> list[Answer]:
    """Answers of several lengths, each to a prompt of its own; the even ones are good."""
    made = [
        Labelled([said("user", f"Say {n}.")], [said("assistant", "yes " * (n + 1))], n % 2 == 0) for n in range(count)
    ]
    return answers.encode(made, tokenizer, end=2, chat=True)


@pytest.fixture
def trainer_of(ctx: Any, tokenizer: Any) -> Callable[..., AnswerTrainer]:
    def make(model: PreTrainedModel, found: list[Answer], **options: Any) -> AnswerTrainer:
        plain = {"bf16": False, "use_cpu": True, "report_to": "none", "max_length": None, "beta": BETA}
        plain |= {"precompute_ref_log_probs": True, "gradient_checkpointing": False, "remove_unused_columns": False}
        args = KTOConfig(str(ctx.dir / "t"), **{**plain, **options})
        return AnswerTrainer(model.eval(), tokenizer, args=args, answers=found, held_out=found, context=64)

    return make


def moved(model: PreTrainedModel, seed: int) -> None:
    """Put a model a little aside, as training does."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))


def log_ratio(policy: PreTrainedModel, held: PreTrainedModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log(policy(y|x) / reference(y|x)), by the token, from plain logits."""
    ids = torch.tensor([prompt + answer])
    logps = [model(input_ids=ids).logits[0].log_softmax(-1) for model in (policy, held)]
    places = range(len(prompt), ids.shape[1])
    return sum(logps[0][t - 1, ids[0, t]] - logps[1][t - 1, ids[0, t]].detach() for t in places)


def equation_7(
    policy: PreTrainedModel, held: PreTrainedModel, rows: list[dict[str, Any]], good: float, bad: float
) -> tuple[torch.Tensor, float]:
    """Return E[lambda_y - v(x, y)], and z0, which no gradient goes through."""
    other = [log_ratio(policy, held, row["prompt_ids"], row["KL_completion_ids"]) for row in rows]
    z0 = torch.stack(other).mean().detach().clamp(min=0)
    losses = []
    for row in rows:
        reward = log_ratio(policy, held, row["prompt_ids"], row["completion_ids"])
        if row["label"]:
            losses.append(good - good * torch.sigmoid(BETA * (reward - z0)))
        else:
            losses.append(bad - bad * torch.sigmoid(BETA * (z0 - reward)))
    return torch.stack(losses).mean(), float(z0)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("above_zero", [True, False])
def test_loss_and_gradient_are_those_of_the_paper(arch, above_zero, make_model, tokenizer, trainer_of) -> None:
    model = make_model(arch, **SHAPES.get(arch, {}))
    held = copy.deepcopy(model).eval()
    found = encoded(tokenizer)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    trainer = trainer_of(model, found, **weights)
    rows = [trainer.train_dataset[n] for n in range(len(found))]
    for seed in range(20):  # until the KL estimate is on the side that is wanted
        model.load_state_dict(held.state_dict())
        moved(model, seed)
        expected, z0 = equation_7(model, held, rows, 1.3, 0.7)
        if (z0 > 0.05) == above_zero:
            break
    assert (z0 > 0.05) == above_zero
    loss = trainer.compute_loss(model, trainer.data_collator(rows))
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(loss.item() - 0.52) > 1e-4  # it did move
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_held_out_loss_is_that_of_one_batch(make_model, tokenizer, trainer_of) -> None:
    model = make_model()
    held = copy.deepcopy(model).eval()
    trainer = trainer_of(model, encoded(tokenizer), per_device_train_batch_size=2)
    assert trainer.measured() == (pytest.approx(0.5, abs=1e-7), 0.5)
    rows = [trainer.eval_dataset[n] for n in range(len(trainer.eval_dataset))]
    for seed in range(20):  # until there is a KL
        model.load_state_dict(held.state_dict())
        moved(model, seed)
        expected, z0 = equation_7(model, held, rows, 1.0, 1.0)
        if z0 > 0.05:
            break
    assert z0 > 0.05
    loss, auc = trainer.measured()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    good, bad = ([log_ratio(model, held, row["prompt_ids"], row["completion_ids"]).item() for row in rows
                  if row["label"] == label] for label in (True, False))  # fmt: skip
    assert auc == sum(one > other for one in good for other in bad) / (len(good) * len(bad))


def test_answers_are_written_as_those_of_pairs(tokenizer) -> None:
    one = preference("Yes.", "No.", text=("Well? ", "Yes.", "No."))
    for chat in (True, False):
        (pair,) = pairs.encode([one], tokenizer, end=2, chat=chat, heads=())
        good, bad = answers.encode(
            [Labelled(one.prompt, one.chosen, True, one.text[:2]),
             Labelled(one.prompt, one.rejected, False, (one.text[0], one.text[2]))],
            tokenizer, end=2, chat=chat,
        )  # fmt: skip
        assert (good.ids, bad.ids) == (pair.chosen, pair.rejected)
        assert good.prompt == bad.prompt == pair.prompt
        assert good.ids[-1] == bad.ids[-1] == 2


def test_an_answer_begins_where_a_template_rewrites_the_prompt(tokenizer) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
        "{{ m['content'] if loop.last else m['content'][:3] }}{% endfor %}{{ '<|end|>' if not add_generation_prompt }}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    row = Labelled([said("user", "abcdef")], [said("assistant", "x")], True)
    (one,) = answers.encode([row], tokenizer, end=2, chat=True)
    assert tokenizer.decode(one.ids[: one.prompt]) == "<|user|>abc"
    assert tokenizer.decode(one.ids[one.prompt :]) == "<|assistant|>x<|end|>"


def answer(asked: int, token: int) -> Answer:
    return Answer([asked, token], 1, True)


def test_the_kl_is_of_answers_to_other_prompts() -> None:
    """Next to their batch's; of pairs, never the other answer of the pair."""
    found = [answer(1, 10), answer(1, 11), answer(2, 12), answer(2, 13), answer(3, 14)]
    beside = answers.mismatched(found, batch=4)
    assert [one.ids[1] for one in beside] == [12, 12, 10, 10, 10]  # the last one is alone in its batch
    assert [one.ids[1] for one in answers.mismatched(found[:2], batch=2)] == [11, 10]  # no other prompt is there
    assert all(one.asked != other.asked for one, other in zip(found, beside, strict=True))


def test_the_answer_beside_is_cut_to_the_context() -> None:
    found = [Answer([1, 2, 3, 4, 9], 4, True), Answer([5, 6, 7, 8, 9], 1, False)]
    columns = answers.columns_of(found, batch=2, context=5)
    assert columns["KL_completion_ids"] == [[6], [9]]
    assert columns["prompt_ids"] == [[1, 2, 3, 4], [5]]
    assert columns["completion_ids"] == [[9], [6, 7, 8, 9]]
    assert columns["label"] == [True, False]
    assert columns["length"] == [5, 5]


def test_batches_hold_the_ids_as_they_are(make_model, tokenizer, trainer_of) -> None:
    """With their end token, padded on the right alone, whatever the tokenizer's side is."""
    tokenizer.padding_side = "left"
    trainer = trainer_of(make_model(), encoded(tokenizer))
    rows = [trainer.train_dataset[n] for n in range(len(trainer.train_dataset))]
    batch = trainer.data_collator(rows)
    for prefix in ("", "KL_"):
        for number, row in enumerate(rows):
            ids, prompt = row["prompt_ids"] + row[f"{prefix}completion_ids"], len(row["prompt_ids"])
            width = batch[f"{prefix}input_ids"].shape[1]
            assert batch[f"{prefix}input_ids"][number, : len(ids)].tolist() == ids
            assert ids[-1] == 2
            assert batch[f"{prefix}attention_mask"][number].tolist() == [n < len(ids) for n in range(width)]
            scored = batch[f"{prefix}completion_mask"][number].nonzero().flatten().tolist()
            assert scored == list(range(prompt, len(ids)))


def test_the_reference_is_what_the_model_was(make_model, tokenizer, trainer_of) -> None:
    model = make_model()
    before = copy.deepcopy(model).eval()
    found = encoded(tokenizer)
    trainer = trainer_of(model, found, per_device_train_batch_size=2)
    moved(model, 1)
    assert trainer.ref_model is None
    rows = [trainer.train_dataset[n] for n in range(len(found))]
    plain = [reference.plain_logps(before, [(row["prompt_ids"], row[side]) for side in trainer.sides]) for row in rows]
    torch.testing.assert_close(trainer.reference(trainer.train_dataset), torch.stack(plain), atol=1e-4, rtol=1e-6)
    ids = [one.ids for one in found]
    assert all(gate.passed for gate in reference.gates(trainer, before, ids, end=2, context=64))
    moved(before, 2)
    assert not reference.gates(trainer, before, ids, end=2, context=64)[0].passed


def test_batches_stay_together(make_model, tokenizer, trainer_of) -> None:
    trainer = trainer_of(make_model(), encoded(tokenizer, 7), per_device_train_batch_size=2)
    assert isinstance(trainer._get_train_sampler(), SequentialSampler)
    lengths = [len(row["prompt_ids"] + row["completion_ids"]) for row in trainer.train_dataset]
    assert lengths != sorted(lengths)
    step = sorted(lengths)[1] - min(lengths)
    assert [lengths[n + 1] - lengths[n] for n in (0, 2, 4)] == [step] * 3  # the next in length
    again = trainer_of(make_model(), encoded(tokenizer, 7), per_device_train_batch_size=2)
    assert again.train_dataset["completion_ids"][:] == trainer.train_dataset["completion_ids"][:]


@pytest.mark.parametrize(
    ("good", "bad", "ratio", "advice"),
    [
        (6, 6, 1.0, None),
        (8, 6, 4 / 3, None),
        (9, 3, 3.0, "9 good and 3 bad answers weigh 3 to 1; 1 to 1.33 is recommended (arXiv:2402.01306): "
         "trainer: {undesirable_weight: 2.6}"),
        (3, 9, 1 / 3, "3 good and 9 bad answers weigh 0.33 to 1; 1 to 1.33 is recommended (arXiv:2402.01306): "
         "trainer: {desirable_weight: 3.5}"),
    ],
)  # fmt: skip
def test_a_poor_balance_is_said(good, bad, ratio, advice, ctx) -> None:
    train = [Answer([1, 2], 1, True)] * good + [Answer([1, 2], 1, False)] * bad
    assert answers.balance(train, ctx, good=1.0, bad=1.0) == pytest.approx(ratio)
    assert [event["text"] for event in ctx.events] == ([advice] if advice else [])
    if advice:  # what is advised mends it
        weight = float(advice.rpartition(" ")[2].rstrip("}"))
        mended = {"bad": weight, "good": 1.0} if "undesirable" in advice else {"good": weight, "bad": 1.0}
        answers.balance(train, ctx, **mended)
        assert len(ctx.events) == 1


@pytest.mark.parametrize(("is_good", "told", "hint"), [
    (True, "all 3 answers to learn from are labelled good (true); kto learns from both kinds",
     "add answers labelled bad (false); from good ones alone, sft learns"),
    (False, "all 3 answers to learn from are labelled bad (false); kto learns from both kinds",
     "add answers labelled good (true)"),
])  # fmt: skip
def test_one_kind_alone_is_refused(is_good, told, hint, ctx) -> None:
    with pytest.raises(DataError) as caught:
        answers.fitting([[Answer([1, 2], 1, is_good)] * 3, []], ctx, context=8, cut=False)
    assert (str(caught.value), caught.value.hint) == (told, hint)


def test_a_prompt_that_fills_the_context_leaves_nothing_to_learn(ctx) -> None:
    whole, filled = Answer([1, 2, 3], 1, True), Answer([1, 2, 3, 4], 3, False)
    bad = Answer([1, 2], 1, False)
    ((first, second), _), counts = answers.fitting([[whole, filled, bad], []], ctx, context=3, cut=True)
    assert (first, second) == (whole, bad)
    assert counts == {"too_long_rows": 1}


def test_rivals_are_compared_once() -> None:
    rows = [(answer(1, 5), 2.0), (Answer([1, 6], 1, False), 0.5), (answer(2, 5), 1.0), (answer(1, 7), 3.0)]
    assert kto_trainer.rivals(rows) == [1.5]


@pytest.mark.parametrize(("lost", "told"), [(0.5, False), (2.25, True)])
def test_it_is_said_when_good_answers_became_less_likely(
    lost, told, ctx, make_model, tokenizer, trainer_of, monkeypatch
) -> None:
    trainer = trainer_of(make_model(), encoded(tokenizer))
    before = trainer.reference(trainer.eval_dataset)
    monkeypatch.setattr(trainer, "logps", lambda _: before - lost)
    metrics = kto_trainer.measures(trainer, encoded(tokenizer), ctx)
    assert metrics["good_nats"] - metrics["good_nats_before"] == pytest.approx(lost, abs=1e-4)
    assert metrics["reward_good"] == pytest.approx(-BETA * lost, abs=1e-5)
    said_so = [event["text"] for event in ctx.events if "became less likely" in event["text"]]
    assert said_so == [
        "the good answers themselves became less likely, by 2.2 nats each: "
        "lower trainer.learning_rate, or raise trainer.desirable_weight"
    ] * told  # fmt: skip


def test_what_is_overridden_and_set_by_the_stage_is_still_there() -> None:
    source = inspect.getsource(KTOTrainer.__init__)
    assert source.count("self._prepare_dataset(") == 3  # training rows, held-out rows, each of several sets of them
    prepared, computed = source.index("self._prepare_dataset("), source.index("self.train_dataset = self._precompute_")
    assert prepared < source.index("super().__init__(") < source.index("add_fused_lm_head(") < computed
    assert "elif is_peft_model(model) and ref_model is None:" in source  # else it copies an adapter
    assert "        else:\n            self.ref_model = ref_model\n" in source
    loss = inspect.getsource(KTOTrainer._compute_loss)
    assert all(f'batch["{name}"]' in loss for name in AnswerTrainer.figures)
    fields = KTOConfig.__dataclass_fields__
    assert set(RESERVED) - set(TRAINER_RESERVED) <= set(fields)
    assert fields["loss_type"].metadata["choices"] == ["kto", "apo_zero_unpaired"]  # the second one has no KL term
    assert not {"loss_type", "desirable_weight", "undesirable_weight"} & set(RESERVED)


def test_trl_still_turns_bf16_on_and_llmpipe_does_not(ctx) -> None:
    told = KTOConfig(str(ctx.checkpoints), use_cpu=True)
    assert (told.bf16, told.gradient_checkpointing, told.train_sampling_strategy) == (True, True, "sequential")
    built = arguments.build(
        KTOConfig, ctx, SupervisedSettings(kind="kto", precision="fp32"), options={}, stage_defaults={}, rows=10,
        row_tokens=16, width=32, measured=False,
    )  # fmt: skip
    assert (built.bf16, built.gradient_checkpointing, built.train_sampling_strategy) == (False, False, "sequential")
