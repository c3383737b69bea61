"""Rollouts from a server: the adapter of the moment answers, and a server that is another model is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from llmpipe.errors import StageError
from llmpipe.stages.rlhf_ppo import Settings
from llmpipe.training.ppo import experience
from llmpipe.training.ppo.policy_value import PolicyValue, joined, zero_head
from llmpipe.training.ppo.rollout import Answer
from llmpipe.training.ppo.shared import attach
from llmpipe.training.ppo.trainer import PPOTrainer
from llmpipe.training.ppo.vllm import VLLM
from tests.stages.ppo_worlds import llama, world
from tests.stages.vllm_stub import serving

PROMPTS = [[2, 3], [4, 2, 1, 3], [9]]
LORA = {"r": 4, "lora_alpha": 8}
COMPLETIONS = "/v1/completions"


def sharp(vocab: int = 16) -> PreTrainedModel:
    """A model whose predictions differ much from token to token."""
    base = llama(vocab)
    with torch.no_grad():
        base.lm_head.weight.mul_(20)
    return base


def moved(policy: PeftModel, *, seed: int = 5) -> PeftModel:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return policy


def sampler(url: str, folder: Path, **changes: Any) -> VLLM:
    options = {"end_ids": (1,), "max_new_tokens": 6, "temperature": 0.7, "first_wait_s": 0.01}
    return VLLM(url, folder / "sent", **{**options, **changes})


def ours(policy: PeftModel, answers: list[Answer], *, temperature: float) -> torch.Tensor:
    """Return the policy's log-probabilities of answers to PROMPTS, one after the other."""
    model = PolicyValue(policy, zero_head(32), temperature=temperature)
    sequences = joined(PROMPTS, [answer.ids for answer in answers], pad_id=0)
    with torch.no_grad():
        return model(sequences.ids, sequences.prompt_lengths, sequences.lengths)[0]


def test_the_answers_are_the_policys(tmp_path: Path) -> None:
    base = sharp()
    with serving(base) as stub:
        policy = moved(attach(base, LORA, None, value=True))
        answers = sampler(stub.url, tmp_path).sample(policy, PROMPTS, seed=3)
        told = torch.tensor([logp for answer in answers for logp in answer.logps or []])
        torch.testing.assert_close(told, ours(policy, answers, temperature=0.7), atol=1e-5, rtol=1e-5)
    assert {answer.finished for answer in answers} == {answer.ids[-1] == 1 for answer in answers}
    assert all(answer.finished or len(answer.ids) == 6 for answer in answers)
    _, body = next(asked for asked in stub.asked if asked[0] == COMPLETIONS)
    neutral = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert neutral.items() <= body.items()
    assert body["stop_token_ids"] == [1] and body["ignore_eos"] is True


def test_a_seed_gives_its_answers_again(tmp_path: Path) -> None:
    base = sharp()
    with serving(base) as stub:
        policy = attach(base, LORA, None, value=False)
        asks = sampler(stub.url, tmp_path, temperature=1.0)
        one, two, other = (asks.sample(policy, PROMPTS * 4, seed=seed) for seed in (3, 3, 4))
    assert one == two
    assert one != other
    assert len({tuple(answer.ids) for answer in one[::3]}) > 1  # one prompt, four seeds


def test_each_rollout_has_the_adapter_of_the_moment_and_no_other(tmp_path: Path) -> None:
    base = sharp()
    with serving(base) as stub:
        policy = attach(base, LORA, None, value=True)
        asks = sampler(stub.url, tmp_path)
        for seed in (1, 2):
            answers = asks.sample(moved(policy, seed=seed), PROMPTS, seed=3)
            told = torch.tensor([logp for answer in answers for logp in answer.logps or []])
            torch.testing.assert_close(told, ours(policy, answers, temperature=0.7), atol=1e-5, rtol=1e-5)
            assert list(stub.served) == [asks.served]
            assert [path.name for path in (tmp_path / "sent").iterdir()] == [asks.served]
        loads = [path for path, _ in stub.asked if path == "/v1/load_lora_adapter"]
        asks.sample(policy, PROMPTS, seed=4)
        assert [path for path, _ in stub.asked if path == "/v1/load_lora_adapter"] == loads  # the same weights
        again = sampler(stub.url, tmp_path)  # after an interruption: the server has this adapter already
        again.sample(policy, PROMPTS, seed=4)
        assert again.served == asks.served


def test_a_server_in_trouble_is_asked_again(tmp_path: Path) -> None:
    base = sharp()
    with serving(base) as stub:
        policy = attach(base, LORA, None, value=False)
        stub.failures_left = 3
        assert sampler(stub.url, tmp_path).sample(policy, PROMPTS, seed=1)
        stub.failures_left = 1000
        with pytest.raises(StageError, match="5 times in a row: status 503: busy"):
            sampler(stub.url, tmp_path / "x").sample(policy, PROMPTS, seed=1)


def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    with serving(sharp()) as stub:
        url = stub.url
    with pytest.raises(StageError, match=r"cannot be reached or is in trouble, 5 times in a row: .*refused") as caught:
        sampler(url, tmp_path).sample(attach(sharp(), LORA, None, value=False), PROMPTS, seed=1)
    assert "rollout.url" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("fault", "said", "hint"),
    [
        ("no updating", "takes no adapters while it runs", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ("small rank", "cannot load the adapter: LoRA rank 4 is greater than max_lora_rank 2", "--max-lora-rank 4"),
        ("forgets", "does not know the adapter llmpipe-.* that it loaded", "does another run use this server"),
        ("old", "gave no token ids with log-probabilities", "a vLLM that knows return_token_ids"),
        ("base answers", "answered with base, and not llmpipe-", None),
    ],
)
def test_what_a_server_cannot_do_is_said(tmp_path: Path, fault: str, said: str, hint: str | None) -> None:
    base = sharp()
    with serving(base, fault) as stub, pytest.raises(StageError, match=said) as caught:
        sampler(stub.url, tmp_path).sample(attach(base, LORA, None, value=False), PROMPTS, seed=1)
    assert (hint or "") in str(caught.value.hint)


def test_a_context_that_is_too_short_is_said(tmp_path: Path) -> None:
    base = sharp()
    with (
        serving(base, max_model_len=8) as stub,
        pytest.raises(StageError, match="maximum context length is 8") as caught,
    ):
        sampler(stub.url, tmp_path).sample(attach(base, LORA, None, value=False), PROMPTS, seed=1)
    assert "--max-model-len" in str(caught.value.hint)


def trainer_at(url: str, folder: Path, base: PreTrainedModel, **settings: Any) -> PPOTrainer:
    def even(ids: list[int]) -> float:
        return sum(token % 2 == 0 for token in ids) / len(ids)

    rollout = {"samples": 16, "max_new_tokens": 4, "engine": "vllm", "url": url, **settings.pop("rollout", {})}
    return world(
        folder,
        attach(base, LORA, None, value=True),
        even,
        prompts=[[2, 3], [4, 2, 1]],
        rollout=rollout,
        lora=LORA,
        value_warmup_rollouts=0,
        arguments={"learning_rate": 3e-2},
        **settings,
    )


def test_ppo_learns_from_a_server(tmp_path: Path) -> None:
    base = sharp()
    with serving(base) as stub:
        trainer = trainer_at(stub.url, tmp_path, base, rollouts=4, rollout={"temperature": 0.8})
        trainer.train()
    assert all(0 <= entry["sampler_mismatch"] < 1e-5 for entry in trainer.history)
    assert trainer.history[0]["kl"] == 0
    assert len({body["model"] for path, body in stub.asked if path == COMPLETIONS}) == 4
    assert trainer.collector.reference.is_unchanged


@pytest.mark.parametrize(("fault", "rollouts"), [("stale", 2), ("raw", 1)])
def test_a_server_that_is_another_model_stops_the_run(tmp_path: Path, fault: str, rollouts: int) -> None:
    """It keeps the first adapter; or its log-probabilities are those at temperature 1."""
    base = sharp()
    with serving(base, fault) as stub:
        trainer = trainer_at(stub.url, tmp_path, base, rollouts=3, rollout={"temperature": 0.5})
        with pytest.raises(
            StageError, match="nats per token away from the policy's: the answers are another"
        ) as caught:
            trainer.train()
    assert trainer.rollouts == rollouts
    assert "use the adapter that it is sent" in str(caught.value.hint)
    assert "--logprobs-mode processed_logprobs" in str(caught.value.hint)


def test_the_mismatch_is_a_mean_over_tokens() -> None:
    answers = [Answer([1, 2], True, [-1.0, -2.0]), Answer([3], True, [-9.0]), Answer([4], False, [-1.05])]
    logps = torch.tensor([[-1.03, -2.0], [0.0, 0.0], [-1.0, 0.0]])
    mask = torch.tensor([[True, True], [False, False], [True, False]])
    usable = torch.tensor([True, False, True])
    found = experience.sampler_mismatch(answers, usable, logps, mask)
    assert found == pytest.approx((0.03 + 0 + 0.05) / 3, abs=1e-6)
    assert experience.sampler_mismatch([Answer([1], True)], usable[:1], logps[:1], mask[:1]) is None


@pytest.mark.parametrize("url", ["localhost:8000", "http://localhost:8000/v1", "file:///etc"])
def test_an_address_is_one_of_a_server(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        Settings.model_validate({"kind": "rlhf-ppo", "lora": {}, "rollout": {"engine": "vllm", "url": url}})
