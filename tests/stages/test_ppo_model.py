"""Log-probabilities and values: the same for every batch, the same as sampled, at the right token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    OPTConfig,
    PreTrainedModel,
)

from llmpipe.training import models
from llmpipe.training.ppo import parts
from llmpipe.training.ppo.policy_value import (
    PolicyValue,
    Reference,
    Sequences,
    ValueNetwork,
    backbone_of,
    joined,
    rescale,
    zero_head,
)
from llmpipe.training.ppo.rollout import Generate
from llmpipe.training.ppo.scoring import Asked, ModelScorer, Rewards
from llmpipe.training.reward_model import RewardFormat, RewardModel

VOCAB, END, PAD = 23, 1, 0
COMMON = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD}
HIDDEN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40}
WIDE = {"intermediate_size": 32, "num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**COMMON, **HIDDEN, **WIDE),
    "gpt2": GPT2Config(**COMMON, n_embd=16, n_layer=2, n_head=2, n_positions=40),
    "opt": OPTConfig(**COMMON, **HIDDEN, ffn_dim=32, word_embed_proj_dim=16, do_layer_norm_before=True),
    "neox": GPTNeoXConfig(**COMMON, **HIDDEN, intermediate_size=32),
    "gemma2": Gemma2Config(**COMMON, **HIDDEN, **WIDE, head_dim=8, final_logit_softcapping=0.5),
}
PROMPTS = [[2, 3], [4, 2, 1, 3, 5, 6, 7], [9], [2, 3, 11, 12]]


def model_of(arch: str, **changes: Any) -> PreTrainedModel:
    """Make a model whose predictions are far from uniform, and depend on where a token stands."""
    torch.manual_seed(0)
    config = CONFIGS[arch].__class__(**{**CONFIGS[arch].to_dict(), **changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3 if "lm_head" not in name else 0.6)
    models.set_dropout(model, 0.0, None)
    return model


def composite(arch: str, *, temperature: float = 1.0, head: bool = False) -> PolicyValue:
    policy = model_of(arch)
    value: Any = zero_head(16) if head else ValueNetwork(backbone_of(model_of(arch)), zero_head(16))
    torch.nn.init.normal_((value if head else value.head).weight)
    return PolicyValue(policy, value, temperature=temperature)


def read(model: PolicyValue, sequences: Sequences) -> list[list[torch.Tensor]]:
    """Return log-probabilities and values of each answer."""
    with torch.no_grad():
        found = model(sequences.ids, sequences.prompt_lengths, sequences.lengths)
    return [list(part.split(sequences.lengths.tolist())) for part in found]


@pytest.mark.parametrize("head", [False, True], ids=["separate", "head"])
@pytest.mark.parametrize("arch", CONFIGS)
def test_a_row_reads_the_same_alone_and_with_others(arch: str, head: bool) -> None:
    """Item 2: neither more padding nor longer neighbours change a log-probability or a value."""
    model = composite(arch, head=head)
    answers = [[5, 6, END], [8], [9, 10, 11, 12, 13], [4, END]]
    together = read(model, joined(PROMPTS, answers, pad_id=PAD))
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        alone = joined([prompt], [answer], pad_id=PAD)
        wider = Sequences(torch.cat([alone.ids, torch.full((1, 7), 3)], 1), alone.prompt_lengths, alone.lengths)
        for sequences in (alone, wider):
            for one, two in zip(read(model, sequences), together, strict=True):
                assert torch.allclose(one[0], two[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", CONFIGS)
def test_log_probabilities_are_those_of_the_sampler(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items 1, 2 and 14: at temperature .7, prompts padded on the left for sampling and on the right for reading."""
    model = composite(arch, temperature=0.7)
    generate, logits = model.policy.generate, []

    def watched(**options: Any) -> torch.Tensor:
        made = generate(**options, output_logits=True, return_dict_in_generate=True)
        logits.extend(made.logits)
        return made.sequences

    monkeypatch.setattr(model.policy, "generate", watched)
    answers = Generate((END, 5, 8, 14, 20), PAD, 6, 0.7).sample(model.policy, PROMPTS, seed=0)
    assert len({len(answer.ids) for answer in answers}) > 1, "not ragged"
    found, _ = read(model, joined(PROMPTS, [answer.ids for answer in answers], pad_id=PAD))
    for row, answer in enumerate(answers):
        wanted = [(logits[place][row] / 0.7).log_softmax(-1)[token] for place, token in enumerate(answer.ids)]
        assert torch.allclose(found[row], torch.stack(wanted), atol=1e-4, rtol=0)


def test_models_that_change_their_logits_are_seen_through() -> None:
    """Item 14: Gemma 2 caps its logits after the head; the head alone would give other probabilities."""
    assert composite("llama").projects_alone
    assert not composite("gemma2").projects_alone


def test_entropy_is_that_of_the_sampled_distribution() -> None:
    """Item 23: at the temperature, before each answer token and no other."""
    for arch in ("llama", "gemma2"):
        model = composite(arch, temperature=0.7)
        sequences = joined(PROMPTS[:2], [[5, 6, END], [8]], pad_id=PAD)
        wanted = []
        for row, (start, count) in enumerate(((2, 3), (7, 1))):
            logits = model.policy(sequences.ids[row : row + 1]).logits[0, start - 1 : start - 1 + count] / 0.7
            wanted.append(torch.distributions.Categorical(logits=logits).entropy())
        found = model.entropy(sequences, most_tokens=512)
        assert torch.allclose(found, torch.cat(wanted), atol=1e-5)
        assert len(model.entropy(sequences, most_tokens=2)) == 2


@pytest.mark.parametrize("head", [False, True], ids=["separate", "head"])
def test_a_value_is_the_one_before_its_token(head: bool) -> None:
    """Item 16: it may know all tokens before its own, and not its own."""
    model = composite("llama", head=head)
    base = [5, 6, 7, 8]
    _, (before,) = read(model, joined([[2, 3]], [base], pad_id=PAD))
    for place in range(4):
        other = [*base[:place], 12, *base[place + 1 :]]
        _, (after,) = read(model, joined([[2, 3]], [other], pad_id=PAD))
        assert torch.equal(before[: place + 1], after[: place + 1])
        assert (before[place + 1 :] != after[place + 1 :]).all()


def scorer_of(heads: int) -> ModelScorer:
    torch.manual_seed(1)
    config = LlamaConfig(**COMMON, **HIDDEN, **WIDE, num_labels=heads, attention_dropout=0.1)
    judge = LlamaForSequenceClassification(config).eval().requires_grad_(False)
    weights = (1.0, -0.5)[:heads]
    form = RewardFormat(None, END, "v", tuple("ab"[:heads]), weights)
    model = RewardModel(judge, SimpleNamespace(), form)  # type: ignore[arg-type]
    return ModelScorer(model, form.criteria, weights, 1.0, normalized=True, same_tokens=True)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_value_network_begins_as_its_reward_model(heads: int) -> None:
    """Item 17: at an answer's last token it gives the reward, on the scale that rewards are brought to."""
    scorer = scorer_of(heads)
    network = parts.value_network(model_of("llama"), scorer)
    rewards = Rewards([scorer], clip=None)
    answers = Generate((END,), PAD, 6, 1.0).sample(model_of("llama"), PROMPTS, seed=0)
    components = rewards.components([Asked(None, ids) for ids in PROMPTS], answers, [""] * 4)  # type: ignore[arg-type]
    rewards.measure(components)
    assert rewards.shift is not None and rewards.scale is not None
    rescale(network.head, mean=rewards.shift[0], deviation=rewards.scale[0])
    sequences = joined(PROMPTS, [answer.ids for answer in answers], pad_id=PAD)
    last = torch.zeros_like(sequences.ids, dtype=torch.bool)
    last[torch.arange(4), sequences.prompt_lengths + sequences.lengths - 1] = True
    wanted = rewards.total(components)
    assert wanted.std() == pytest.approx(1) and abs(wanted.mean()) < 1e-6
    assert torch.allclose(network(sequences.ids, last).double(), wanted, atol=1e-5)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in scorer.model.model.parameters())


def test_without_a_reward_model_values_begin_at_0() -> None:
    network = parts.value_network(model_of("llama"), None)
    _, values = read(PolicyValue(model_of("llama"), network, temperature=1.0), joined([[2]], [[3, 4]], pad_id=PAD))
    assert not values[0].any()


@pytest.mark.parametrize(("arch", "name"), [("llama", "attention_dropout"), ("gpt2", "attn_pdrop"), ("opt", "dropout")])
def test_dropout_is_off_in_training_mode(arch: str, name: str) -> None:
    """Item 18: dropout of attention is no module; it is read from the configuration, in training mode."""
    model = model_of(arch, **{name: 0.5}).train()
    ids = torch.tensor([PROMPTS[1]])
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_dropout_of_a_reward_model_does_not_live_on_in_the_values() -> None:
    """Item 18."""
    network = parts.value_network(model_of("llama"), scorer_of(1)).train()
    ids = torch.tensor([PROMPTS[1]])
    assert torch.equal(network(ids, ids > 0), network(ids, ids > 0))


def test_the_reference_is_a_frozen_copy() -> None:
    """Item 29."""
    model = composite("llama")
    reference = Reference(model.policy)
    sequences = joined(PROMPTS, [[5, END]] * 4, pad_id=PAD)
    with torch.no_grad():
        before = reference(model, sequences)
        assert torch.equal(before, model.logps_of(model.policy, sequences))
        next(model.policy.parameters()).add_(0.1)
        assert torch.equal(before, reference(model, sequences))
    assert reference.is_unchanged
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())
    next(reference.model.parameters()).add_(1e-3)
    assert not reference.is_unchanged
