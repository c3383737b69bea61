"""Answers from any model that a name means, for `llmpipe generate`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmpipe.context import Context
from llmpipe.data.preferences import Prompt
from llmpipe.errors import StageError
from llmpipe.evaluation import fill
from llmpipe.evaluation.generate import Sampling, Told, told
from llmpipe.settings import AnySource
from llmpipe.training import models


def answered(
    source: AnySource, ctx: Context, prompts: Sequence[str | Prompt], sampling: Sampling, *, count: int, plain: bool
) -> list[list[Told]]:
    """Load a model and return `count` answers to each prompt; `plain` continues texts instead of chatting.

    Raises:
        StageError: the model cannot be loaded, or tells nothing.
    """
    model, tokenizer = models.load(source, ctx, kinds=tuple(models.CLASSES))
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    chat = tokenizer.chat_template is not None and not plain
    if models.kind_of(model.config, ()) == "masked-lm":
        if any(isinstance(prompt, Prompt) for prompt in prompts):
            raise StageError("a masked model fills gaps in texts, and answers no conversations")
        return [[Told(text, finished=True)] for text in fill.filled(model, tokenizer, [str(one) for one in prompts])]
    repeated = [prompt for prompt in prompts for _ in range(count)]
    found = told(model, tokenizer, repeated, sampling, chat=chat)
    return [found[first : first + count] for first in range(0, len(found), count)]
