"""What scores the answers, from a stage's sources: reward models and Python functions."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from llmpipe.context import Context
from llmpipe.errors import Problem, StageError
from llmpipe.settings import AnySource, FunctionSource
from llmpipe.training import reward_model
from llmpipe.training.models import context_length
from llmpipe.training.ppo.one_base import OneBase
from llmpipe.training.ppo.scoring import FunctionScorer, Scorer, model_scorer
from llmpipe.training.reward_model import RewardModel, vocabulary_of

Judge = tuple[AnySource, RewardModel | Callable[..., Any]]


def load(sources: Sequence[AnySource], ctx: Context, base: OneBase | None = None) -> list[Judge]:
    """Load reward models, on the policy's base where they belong, and functions, each with the source that names it."""
    load_model = base.reward_model if base else reward_model.load
    return [
        (
            source,
            load_function(source.function) if isinstance(source, FunctionSource) else load_model(source, ctx),
        )
        for source in sources
    ]


def load_function(where: str) -> Callable[..., Any]:
    """Import FILE.py:NAME; that it may run was said with --allow-code."""
    file, _, name = where.rpartition(":")
    spec = importlib.util.spec_from_file_location(f"reward_{Path(file).stem}", file)  # random.py is not `random`
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise StageError(Problem(f"cannot be imported: {type(error).__name__}: {error}", where=file)) from error
    found: Callable[..., Any] = getattr(module, name)
    return found


def adopt_template(tokenizer: Tokenizer, judges: Sequence[Judge], ctx: Context) -> None:
    """Give a policy without a chat template the one that its only reward model learned from, if tokens are the same."""
    models = [judge for _, judge in judges if isinstance(judge, RewardModel)]
    if tokenizer.chat_template is None and len(models) == 1:
        form = models[0].format
        if form.chat_template is not None and form.vocabulary == vocabulary_of(tokenizer):
            tokenizer.chat_template = form.chat_template
            ctx.say("the policy has no chat template; it takes the one that its reward model learned from")


def scorers(
    judges: Sequence[Judge], ctx: Context, tokenizer: Tokenizer, *, chat: bool, normalize: bool, longest: int
) -> list[Scorer]:
    """Make what scores the answers; `longest` is the most tokens that a prompt with its answer has.

    Raises:
        StageError: a reward model sees fewer tokens than that, or writes plain text where the policy chats.
    """
    made: list[Scorer] = []
    for source, judge in judges:
        if isinstance(source, FunctionSource):
            assert callable(judge)
            made.append(FunctionScorer(judge, (source.function.rpartition(":")[2],), source.weight))
            continue
        assert isinstance(judge, RewardModel)
        sees = context_length(judge.model)
        name = next(str(value) for value in source.model_dump().values())
        if sees < longest:
            raise StageError(f"the reward model {name} sees {sees} tokens, and a prompt with its answer has {longest}")
        weight = source.weight if hasattr(source, "weight") else 1.0
        scorer, reason = model_scorer(
            judge, tokenizer, name=Path(name).name, weight=weight, chat=chat, normalized=normalize
        )
        if reason:
            ctx.say(f"the reward model {name} {reason}: answers are written again for it")
        made.append(scorer)
    return made
