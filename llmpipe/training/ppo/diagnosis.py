"""What the numbers of PPO say, in words: checks of the first rollout that stop the run, and lines that warn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmpipe.errors import StageError

EXACT = 1e-4  # nats; what batches of another shape change in fp32
ROUGH = 0.3  # nats; the same in bf16, at the worst token
IN_A_ROW = 5

History = Sequence[Mapping[str, Any]]


def check_reference(furthest: float, *, exact: bool) -> None:
    """Stop when policy and reference, which are still the same model, give a token other log-probabilities.

    Args:
        furthest: the largest |log pi - log ref| of a token, nats.
        exact: whether both ran in fp32.
    """
    if not furthest <= (EXACT if exact else ROUGH):
        raise StageError(
            f"before the first step, policy and reference differ by {furthest:.2g} nats at a token; they are one model",
            hint="a model with dropout, or one whose forward pass is not repeatable, cannot be trained with PPO",
        )


def check_ratio(furthest: float, *, exact: bool) -> None:
    """Stop when the first minibatch's probabilities are not those that the rollout noted.

    Args:
        furthest: the largest |pi / pi_old - 1| of a token in the first minibatch.
        exact: whether both ran in fp32.
    """
    if not furthest <= (EXACT if exact else ROUGH):
        raise StageError(
            f"before the first step, a token's probability differs by {furthest:.1%} from the one in the rollout",
            hint="training mode changes this model's output: is there dropout that cannot be switched off?",
        )


def lines(history: History) -> list[str]:
    """Say what is off in the newest rollout; each thing when it begins, and not again while it lasts."""
    return [text for text in map(_line, _RULES, [history] * len(_RULES)) if text]


def _line(rule: Any, history: History) -> str | None:
    text = rule(history)
    return text if text and not (len(history) > 1 and rule(history[:-1])) else None


def _newest(history: History, key: str, count: int = 1) -> list[float] | None:
    """Return a metric in the last rollouts; None where there are not so many, or it is missing in one."""
    found = [entry[key] for entry in history[-count:] if entry.get(key) is not None]
    return found if len(found) == count else None


def _negative_kl(history: History) -> str | None:
    found = _newest(history, "kl", IN_A_ROW)
    if found and max(found) < -0.01:
        return (
            f"KL is negative for {IN_A_ROW} rollouts (now {found[-1]:.2f} nats): answers are not sampled from the "
            "policy that is measured; does the sampler use another temperature, or older weights?"
        )
    return None


def _length_pays(history: History) -> str | None:
    found = _newest(history, "reward_length_correlation", 2)
    if found and min(found) >= 0.8:
        return (
            f"reward rises with length, correlation {found[-1]:.1f}: is it quality that is rewarded? See length_penalty"
        )
    return None


def _clipped(history: History) -> str | None:
    found = _newest(history, "clip_fraction")
    if found and found[0] > 0.4:
        return f"{found[0]:.0%} of the tokens are clipped: steps are too large; lower trainer.learning_rate or epochs"
    return None


def _value_knows_nothing(history: History) -> str | None:
    found = _newest(history, "explained_variance", IN_A_ROW)
    if found and len(history) > 2 * IN_A_ROW and max(found) < 0:
        return (
            f"the value network explains nothing (explained variance {found[-1]:.1f}); raise value_learning_rate, "
            "or begin it from a reward model"
        )
    return None


def _entropy_collapsed(history: History) -> str | None:
    found = _newest(history, "entropy")
    first = history[0].get("entropy")
    if found and first and found[0] < 0.1 * first:
        return (
            f"entropy fell from {first:.2g} to {found[0]:.2g} nats per token: the policy says nearly the same each "
            "time; raise kl.coefficient"
        )
    return None


def _same_answers(history: History) -> str | None:
    found = _newest(history, "unique_share")
    if found and found[0] < 0.5:
        return f"only {found[0]:.0%} of the answers differ from each other"
    return None


def _never_ends(history: History) -> str | None:
    found = _newest(history, "ended_share")
    if found and found[0] < 0.1:
        return (
            f"{1 - found[0]:.0%} of the answers come to no end token: raise rollout.max_new_tokens, or name the token "
            "that ends an answer with rollout.stop"
        )
    return None


def _returns_are_large(history: History) -> str | None:
    found = _newest(history, "returns_deviation")
    if found and found[0] > 5:
        return (
            f"returns deviate by {found[0]:.1f}, and value_clip is made for about 1: scale the reward down, "
            "or set value_clip: null"
        )
    return None


def _nothing_to_learn(history: History) -> str | None:
    found = _newest(history, "reward_deviation", 2)
    if found and max(found) == 0:
        return "every answer gets the same reward: there is nothing to learn from it"
    return None


def _skipped(history: History) -> str | None:
    found = _newest(history, "skipped")
    if found and found[0] > 0:
        return f"{found[0]:.0f} answers of this rollout could not be scored, and are left out"
    return None


_RULES = (
    _negative_kl,
    _length_pays,
    _clipped,
    _value_knows_nothing,
    _entropy_collapsed,
    _same_answers,
    _never_ends,
    _returns_are_large,
    _nothing_to_learn,
    _skipped,
)
