"""What a user can get wrong in PPO, and the words for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmpipe.data.preferences import Prompt
from llmpipe.errors import DataError, LlmpipeError, StageError
from llmpipe.stages import rlhf_ppo
from llmpipe.training.ppo import parts
from llmpipe.training.ppo.scoring import FunctionScorer
from tests.stages.tiny import context_for, run_stage

CALLED = "it is called as f(prompts=[...], answers=[...]), with references=[...] where it takes them"


@pytest.fixture
def run(make_model: Any, tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """Run the stage with a reward function's source, one rollout, and settings of one's own."""

    def go(source: str = "def f(prompts, answers):\n    return [1.0] * len(answers)\n", **settings: Any) -> Any:
        model = settings.pop("policy", None) or make_model(context=64)
        model.save_pretrained(tmp_path / "m")
        (settings.pop("tokenizer", None) or tokenizer).save_pretrained(tmp_path / "m")
        (tmp_path / "judge.py").write_text(source, encoding="utf-8")
        prompts = settings.pop("prompts", ["a duck", "a shoe", "the sea", "my hat"])
        rows = "\n".join(json.dumps({"prompt": prompt}) for prompt in prompts)
        (tmp_path / "p.jsonl").write_text(rows, encoding="utf-8")
        base = {
            "model": {"path": str(tmp_path / "m")},
            "reward": {"function": f"{tmp_path}/judge.py:f"},
            "data": {"path": str(tmp_path / "p.jsonl")},
            "rollouts": 1,
            "rollout": {"samples": 8, "max_new_tokens": 6},
            "held_out": {"share": 0},
            "precision": "fp32",
        }
        ctx = context_for(tmp_path)
        return run_stage("rlhf-ppo", base | settings, ctx), ctx

    return go


def failed(run: Callable[..., Any], *source: str, **settings: Any) -> LlmpipeError:
    with pytest.raises(LlmpipeError) as error:
        run(*source, **settings)
    return error.value


# --- reward functions


def test_a_function_that_raises_is_named_with_its_line(run: Callable[..., Any], tmp_path: Path) -> None:
    error = failed(run, "def f(prompts, answers):\n    words = [a.split() for a in answers]\n    return words[99]\n")
    where = f"{tmp_path}/judge.py:3"
    assert str(error) == f"{where}: the reward function f raised IndexError: list index out of range"
    assert error.hint == CALLED


def test_a_function_that_is_called_otherwise(run: Callable[..., Any]) -> None:
    error = failed(run, "def f(texts):\n    return [1.0] * len(texts)\n")
    assert str(error) == "the reward function f raised TypeError: f() got an unexpected keyword argument 'prompts'"
    assert error.hint == CALLED


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        ("[1.0]", "the reward function f gave 1 numbers for 8 answers"),
        ("[]", "the reward function f gave 0 numbers for 8 answers"),
        ("0.5", "the reward function f gave 0.5 instead of a list of numbers"),
        ("None", "the reward function f gave None instead of a list of numbers"),
        ("['good'] * len(answers)", "the reward function f gave 'good', which is no number"),
        ("[[1.0, 2.0]] * len(answers)", "the reward function f gave [1.0, 2.0], which is no number"),
        ("[None] * len(answers)", "no answer of a rollout could be scored"),
        ("[float('nan')] * len(answers)", "no answer of a rollout could be scored"),
        ("[float('inf')] * len(answers)", "no answer of a rollout could be scored"),
    ],
)
def test_what_a_function_may_not_return(run: Callable[..., Any], returned: str, text: str) -> None:
    error = failed(run, f"def f(prompts, answers):\n    return {returned}\n")
    assert isinstance(error, StageError) and str(error) == text


def test_a_file_that_cannot_be_imported(run: Callable[..., Any], tmp_path: Path) -> None:
    error = failed(run, "import no_such_module\n")
    assert str(error) == (
        f"{tmp_path}/judge.py: cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_some_answers_may_go_without_a_score(run: Callable[..., Any]) -> None:
    """Item 30: that is said, and the run comes to its end."""
    source = "def f(prompts, answers):\n    return [None, *range(1, len(answers))]\n"
    result, ctx = run(source)
    assert result.metrics["rollouts"] == 1
    text = "1 answers of this rollout could not be scored, and are left out"
    assert {"event": "say", "text": text} in ctx.events


@pytest.mark.parametrize("kind", ["iter", "tuple", "__import__('torch').tensor", "__import__('numpy').array"])
def test_a_function_may_return_any_row_of_numbers(kind: str) -> None:
    made: dict[str, Any] = {}
    exec(f"def f(prompts, answers):\n    return {kind}([1.0, 2.0])\n", made)
    answers: Any = [None, None]
    assert FunctionScorer(made["f"], ("f",), 1.0).scores([], answers, ["a", "b"]).tolist() == [[1.0], [2.0]]


# --- policies and prompts


def test_without_held_out_prompts_the_rollouts_are_compared(run: Callable[..., Any], tmp_path: Path) -> None:
    source = "def f(prompts, answers):\n    return range(len(answers))\n"
    result, _ = run(source, rollouts=2, missing_end_penalty=0)
    assert "model" in result.outputs and (tmp_path / "x" / "model" / "model.safetensors").exists()
    assert (result.metrics["reward_before"], result.metrics["answers"], result.metrics["held_out_prompts"]) == (
        3.5,
        16,
        0,
    )


def test_a_policy_without_an_end_token(make_model: Any, tokenizer: Any) -> None:
    model = make_model()
    model.generation_config.eos_token_id = None
    plain = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(StageError) as error:
        parts.end_ids(model, plain, None)
    assert str(error.value) == "the policy has no end token, so that its answers would never be over"
    assert error.value.hint == 'name the token that ends an answer: rollout: {stop: ["<|end|>"]}'


def test_end_tokens_come_from_the_model_or_are_named(make_model: Any, tokenizer: Any) -> None:
    """Item 4."""
    model, end = make_model(), tokenizer.eos_token_id
    model.generation_config.eos_token_id = [end, 5]
    assert parts.end_ids(model, tokenizer, None) == (end, 5)
    model.generation_config.eos_token_id = None
    assert parts.end_ids(model, tokenizer, None) == (end,)
    pair = ["<|end|>", "<|pad|>"]
    assert parts.end_ids(model, tokenizer, pair) == tuple(tokenizer.convert_tokens_to_ids(pair))


def test_an_end_token_that_does_not_exist(run: Callable[..., Any]) -> None:
    rollout = {"samples": 8, "max_new_tokens": 6, "stop": ["<|ent|>"]}
    error = failed(run, rollout=rollout)
    assert str(error) == "rollout.stop: '<|ent|>' is not a token of this model, did you mean <|end|>?"


def test_prompts_longer_than_the_context(run: Callable[..., Any]) -> None:
    """Those that fit are used, and the others counted; where none fits, the run does not begin."""
    long = "a duck and a shoe " * 40
    result, ctx = run(prompts=["a duck", long, "a shoe"])
    assert (result.metrics["prompts"], result.metrics["too_long_prompts"]) == (2, 1)
    assert {"event": "say", "text": "1 of 3 prompts are longer than 58 tokens: dropped"} in ctx.events
    error = failed(run, prompts=[long, long + "once more"])
    assert isinstance(error, DataError)
    assert str(error) == "no prompt has at most 58 tokens, which is what rollout.max_new_tokens leaves of the context"
    assert error.hint == "lower rollout.max_new_tokens, or use a model with a longer context"


def test_an_empty_prompt_needs_a_begin_token(tokenizer: Any) -> None:
    """Item 30: with one, the model may say what it likes."""
    empty = Prompt([], text="")
    assert parts.encoded(empty, tokenizer, chat=False).ids == [tokenizer.bos_token_id]
    plain = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(DataError) as error:
        parts.encoded(empty, plain, chat=False)
    assert str(error.value) == "a prompt is empty, and this tokenizer has no begin token that an answer could follow"
    assert error.value.hint == "leave out rows with an empty prompt"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"dropout": 0.1}, "dropout makes the probabilities before and after a step differ; leave it out"),
        ({"minibatches": 3}, "rollout.samples (64) is not a multiple of minibatches"),
        (
            {"rollout": {"samples": 6, "samples_per_prompt": 4}},
            "samples (6) is not a multiple of samples_per_prompt (4)",
        ),
        ({"rollout": {"engine": "vllm"}}, "engine: vllm and url: belong together"),
        ({"length_penalty": {"begin": 128}}, "length_penalty.begin is not below rollout.max_new_tokens"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as error:
        rlhf_ppo.Settings.model_validate({"kind": "rlhf-ppo", **settings})
    assert text in str(error.value)


def test_a_minibatch_that_cannot_be_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    settings = rlhf_ppo.Settings.model_validate({"kind": "rlhf-ppo"})
    with pytest.raises(StageError) as error:
        parts.batches(settings, row_tokens=8)
    assert str(error.value) == "a minibatch of 32 answers cannot be shared out over 3 processes"
    assert error.value.hint == "raise rollout.samples"
