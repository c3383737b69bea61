"""What PPO says about its own numbers: when, in which words, and not twice (items 9 and 24)."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from llmpipe.errors import StageError
from llmpipe.training.ppo import diagnosis


def said(*entries: dict[str, Any]) -> list[list[str]]:
    """Return what is said after each rollout."""
    return [diagnosis.lines(entries[: number + 1]) for number in range(len(entries))]


CASES = {
    "a negative KL": (
        [{"kl": -0.5}] * 5,
        "KL is negative for 5 rollouts (now -0.50 nats): answers are not sampled from the policy that is measured; "
        "does the sampler use another temperature, or older weights?",
    ),
    "length pays": (
        [{"reward_length_correlation": 0.9}] * 2,
        "reward rises with length, correlation 0.9: is it quality that is rewarded? See length_penalty",
    ),
    "clipped": (
        [{"clip_fraction": 0.5}],
        "50% of the tokens are clipped: steps are too large; lower trainer.learning_rate or epochs",
    ),
    "no value": (
        [{"explained_variance": -0.3}] * 11,
        "the value network explains nothing (explained variance -0.3); raise value_learning_rate, or begin it from a "
        "reward model",
    ),
    "no entropy": (
        [{"entropy": 2.0}, {"entropy": 0.1}],
        "entropy fell from 2 to 0.1 nats per token: the policy says nearly the same each time; raise kl.coefficient",
    ),
    "one answer": ([{"unique_share": 0.25}], "only 25% of the answers differ from each other"),
    "no end": (
        [{"ended_share": 0.0}],
        "100% of the answers come to no end token: raise rollout.max_new_tokens, or name the token that ends an "
        "answer with rollout.stop",
    ),
    "large returns": (
        [{"returns_deviation": 7.5}],
        "returns deviate by 7.5, and value_clip is made for about 1: scale the reward down, or set value_clip: null",
    ),
    "one reward": (
        [{"reward_deviation": 0.0}] * 2,
        "every answer gets the same reward: there is nothing to learn from it",
    ),
    "skipped": ([{"skipped": 3}], "3 answers of this rollout could not be scored, and are left out"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_line_is_said_when_it_begins_and_once(name: str) -> None:
    entries, text = CASES[name]
    found = said(*entries, entries[-1], entries[-1])
    assert [index for index, lines in enumerate(found) if lines] == [len(entries) - 1]
    assert found[len(entries) - 1] == [text]


def test_what_ended_and_begins_again_is_said_again() -> None:
    assert [len(lines) for lines in said({"skipped": 1}, {"skipped": 0}, {"skipped": 2})] == [1, 0, 1]


@pytest.mark.parametrize(
    "entries",
    [
        [{"kl": -0.5}] * 4,
        [{"kl": -0.5}] * 4 + [{"kl": 0.1}],
        [{"kl": -0.005}] * 6,
        [{"reward_length_correlation": 0.79}] * 3,
        [{"reward_length_correlation": None}, {}],
        [{"clip_fraction": 0.4}],
        [{"explained_variance": -0.3}] * 10,
        [{"explained_variance": -0.3}] * 10 + [{"explained_variance": 0.1}],
        [{"entropy": 2.0}, {"entropy": 0.2}],
        [{"unique_share": 0.5, "ended_share": 0.1, "returns_deviation": 5.0, "skipped": 0}],
        [{"reward_deviation": 0.0}],
    ],
)
def test_nothing_is_said_below_the_bounds(entries: list[dict[str, Any]]) -> None:
    assert said(*entries) == [[]] * len(entries)


@pytest.mark.parametrize(("exact", "within", "beyond"), [(True, 1e-5, 2e-4), (False, 0.2, 0.5)])
def test_policy_and_reference_have_to_agree_before_the_first_step(exact: bool, within: float, beyond: float) -> None:
    """Items 1 and 18."""
    diagnosis.check_reference(within, exact=exact)
    for wrong in (beyond, float("nan")):
        with pytest.raises(StageError) as error:
            diagnosis.check_reference(wrong, exact=exact)
        assert str(error.value) == (
            f"before the first step, policy and reference differ by {wrong:.2g} nats at a token; they are one model"
        )
        assert error.value.hint == (
            "a model with dropout, or one whose forward pass is not repeatable, cannot be trained with PPO"
        )


@pytest.mark.parametrize(("exact", "within", "beyond"), [(True, 1e-5, 2e-4), (False, 0.2, 0.5)])
def test_the_first_minibatch_has_to_have_ratio_1(exact: bool, within: float, beyond: float) -> None:
    """Item 14."""
    diagnosis.check_ratio(within, exact=exact)
    for wrong in (beyond, float("nan")):
        with pytest.raises(StageError) as error:
            diagnosis.check_ratio(wrong, exact=exact)
        assert str(error.value) == (
            f"before the first step, a token's probability differs by {wrong:.1%} from the one in the rollout"
        )
        assert (
            error.value.hint
            == "training mode changes this model's output: is there dropout that cannot be switched off?"
        )


def test_the_words_need_no_torch() -> None:
    code = "import sys, llmpipe.training.ppo.diagnosis; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
